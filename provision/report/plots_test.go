package report

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/provision"
)

// drawn is what a page's content draws with one colour, in points.
type drawn struct {
	lines [][4]float64 // x, y to x, y
	bars  [][4]float64 // x, y, width, height of filled rectangles
}

// drawing reads the content of all pages: colour → what is drawn with it.
func drawing(t *testing.T, pdf []byte) map[string]*drawn {
	t.Helper()
	out := map[string]*drawn{}
	of := func(colour string) *drawn {
		if out[colour] == nil {
			out[colour] = &drawn{}
		}
		return out[colour]
	}
	streams := 0
	for rest := pdf; ; {
		_, after, ok := bytes.Cut(rest, []byte("stream\n"))
		if !ok {
			break
		}
		body, next, ok := bytes.Cut(after, []byte("\nendstream"))
		if !ok {
			t.Fatal("a stream has no end")
		}
		rest = next
		z, err := zlib.NewReader(bytes.NewReader(body))
		if err != nil {
			continue // no content that is compressed
		}
		text, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		streams++
		pen, fill := "", ""
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			var a, b, c, d float64
			switch {
			case strings.HasSuffix(line, " RG"):
				pen = strings.TrimSuffix(line, " RG")
			case strings.HasSuffix(line, " rg"):
				fill = strings.TrimSuffix(line, " rg")
			case strings.HasSuffix(line, " l S"):
				if n, err := fmt.Sscanf(line, "%f %f m %f %f l S", &a, &b, &c, &d); n != 4 {
					t.Fatalf("%q: %v", line, err)
				}
				of(pen).lines = append(of(pen).lines, [4]float64{a, b, c, d})
			case strings.HasSuffix(line, " re f"):
				if n, err := fmt.Sscanf(line, "%f %f %f %f re f", &a, &b, &c, &d); n != 4 {
					t.Fatalf("%q: %v", line, err)
				}
				of(fill).bars = append(of(fill).bars, [4]float64{a, b, c, math.Abs(d)})
			}
		}
	}
	if streams == 0 {
		t.Fatal("no page was read")
	}
	return out
}

// operands are a colour's in a page's content.
func operands(c rgb) string {
	return fmt.Sprintf("%.3f %.3f %.3f", float64(c.r)/255, float64(c.g)/255, float64(c.b)/255)
}

// histogram are the bars that stand on the line on which the last one stands.
func histogram(d map[string]*drawn) (bars [][4]float64) {
	blue := d[operands(inkBlue)]
	if blue == nil {
		return nil
	}
	foot := func(b [4]float64) float64 { return b[1] - b[3] }
	last := blue.bars[len(blue.bars)-1]
	for _, b := range blue.bars {
		if math.Abs(foot(b)-foot(last)) < 0.1 {
			bars = append(bars, b)
		}
	}
	return bars
}

// TestPlotsAreDrawn: both yields are curves over the width of their plot, as high
// as the numbers say, and the histogram has a bar for each bucket with units, as
// high as its number. A page without plots has none of that.
func TestPlotsAreDrawn(t *testing.T) {
	lot := NewLot(projectAll(t, sampleLot(t)), LotOptions{Lot: "L-2026-47", Ordered: 160})
	pdf, err := lot.PDF()
	if err != nil {
		t.Fatal(err)
	}
	got := drawing(t, pdf)
	counted, first, final := 0, 0, 0
	for _, u := range lot.Units {
		if u.Simulated || u.State == Refused {
			continue
		}
		counted++
		if u.FirstPass {
			first++
		}
		if u.State == State(provision.Pass) {
			final++
		}
	}
	if counted < 100 || first == 0 || first == final {
		t.Fatalf("the sample shows nothing: %d, %d, %d", counted, first, final)
	}
	curve := func(name string, c rgb) (end float64) {
		t.Helper()
		d := got[operands(c)]
		if d == nil || len(d.lines) < counted { // steps between units, and the legend's one
			t.Fatalf("%s: %+v", name, d)
		}
		steps := d.lines[:counted-1]
		for i, l := range steps {
			if l[0] >= l[2] || i > 0 && (l[0] != steps[i-1][2] || l[1] != steps[i-1][3]) {
				t.Fatalf("%s: step %d is %v after %v", name, i, l, steps[max(0, i-1)])
			}
		}
		if width := steps[len(steps)-1][2] - steps[0][0]; width < 150 || width > 300 {
			t.Errorf("%s: %.0f points wide", name, width)
		}
		return steps[len(steps)-1][3]
	}
	// PDF counts up from the bottom of the page, so the higher yield ends higher.
	if a, b := curve("final", stateInk[State(provision.Pass)]), curve("first pass", stateInk[State(provision.Error)]); a <= b {
		t.Errorf("the final yield ends at %.1f, the first-pass yield at %.1f", a, b)
	}

	var buckets []Bucket
	for _, b := range lot.Cycle.Histogram {
		if b.Units > 0 {
			buckets = append(buckets, b)
		}
	}
	bars := histogram(got)
	if len(bars) != len(buckets) || len(buckets) < 4 {
		t.Fatalf("%d buckets with units; bars: %v", len(buckets), bars)
	}
	units, height := 0, 0.0
	for i, bar := range bars {
		units, height = units+buckets[i].Units, height+bar[3]
	}
	for i, bar := range bars {
		if want := height / float64(units) * float64(buckets[i].Units); math.Abs(bar[3]-want) > 0.1 || bar[2] <= 1 {
			t.Errorf("bar %d of %d units is %.2f high and %.2f wide, want %.2f high", i, buckets[i].Units, bar[3], bar[2], want)
		}
	}
	// The median and the 95th percentile are upright lines through the plot.
	for name, c := range map[string]rgb{"median": inkDark, "95 %": stateInk[State(provision.Fail)]} {
		upright := 0
		if d := got[operands(c)]; d != nil {
			for _, l := range d.lines {
				if l[0] == l[2] && math.Abs(l[1]-l[3]) > 50 {
					upright++
				}
			}
		}
		if upright != 1 {
			t.Errorf("%s: %d upright lines", name, upright)
		}
	}

	// A lot without units says so, and draws no curve and no bar.
	empty, err := NewLot(projectAll(t, newBook(t, "line-2")), LotOptions{}).PDF()
	if err != nil {
		t.Fatal(err)
	}
	none := drawing(t, empty)
	if b := histogram(none); len(b) > 1 { // the page has a small mark of that colour
		t.Errorf("bars of nothing: %v", b)
	}
	if d := none[operands(stateInk[State(provision.Pass)])]; d != nil && len(d.lines) > 0 {
		t.Errorf("a curve of nothing: %+v", d)
	}
}
