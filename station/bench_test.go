package station_test

import (
	"bytes"
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/esp/slip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/recipe"
	"github.com/provisiond/provisiond/station/port"
)

// meter counts what a line carries, and how long its bytes take on a wire.
type meter struct {
	rom.Port
	baud  int
	bytes int
	wire  time.Duration
	boot  time.Duration // waits for a board that was reset and has not answered yet
	reset bool          // it was, and has not
}

func (m *meter) count(n int) {
	m.bytes += n
	m.wire += time.Duration(n) * 10 * time.Second / time.Duration(m.baud)
}

func (m *meter) Read(ctx context.Context, p []byte) (int, error) {
	began := time.Now()
	n, err := m.Port.Read(ctx, p)
	wire := m.wire
	m.count(n)
	if m.reset {
		m.boot += max(0, time.Since(began)-(m.wire-wire))  // bytes that were there already
		m.reset = !bytes.Contains(p[:n], []byte{slip.End}) // a text is no answer
	}
	return n, err
}

func (m *meter) Write(ctx context.Context, p []byte) (int, error) {
	n, err := m.Port.Write(ctx, p)
	m.count(n)
	return n, err
}

func (m *meter) SetBaud(ctx context.Context, baud int) error {
	err := m.Port.SetBaud(ctx, baud)
	if err == nil {
		m.baud = baud
	}
	return err
}

// timedReset takes the time of resets, which the chip asks for.
type timedReset struct {
	rom.AutoReset
	line *meter
	took time.Duration
}

func (r *timedReset) Download(ctx context.Context, p rom.Port, attempt int) error {
	began := time.Now()
	defer func() { r.took += time.Since(began); r.line.reset = true }()
	return r.AutoReset.Download(ctx, p, attempt)
}

func (r *timedReset) Run(ctx context.Context, p rom.Port) error {
	began := time.Now()
	defer func() { r.took += time.Since(began); r.line.reset = true }()
	return r.AutoReset.Run(ctx, p)
}

// twoChips are one of each generation, for tests that take long and say the same for
// all.
var twoChips = []string{"esp32", "esp32c3"}

// TestUnitTime takes the time of one unit apart, on a clock that stands still while
// anybody computes: what is bytes on the wire, what are resets and boots, and what
// is the host's own waiting. That is under three hundredths. What the host computes
// is BenchmarkUnit's to tell.
func TestUnitTime(t *testing.T) {
	for _, name := range twoChips {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				f := newFactory(t, benchProduct(t, name))
				defer f.close()
				total, line, reset := oneUnit(t, f, name, true)
				rest := total - line.wire - reset.took - line.boot
				t.Logf("%v for %d bytes: %v on the wire, %v resets, %v boots, %v (%.2f %%) else",
					total, line.bytes, line.wire, reset.took, line.boot, rest, 100*rest.Seconds()/total.Seconds())
				if rest > total*3/100 {
					t.Errorf("the host waits for %v of %v", rest, total)
				}
			})
		})
	}
}

// BenchmarkUnit tells what one unit costs in processor time, simulated board
// included, with a line that takes no time.
//
//	go test ./station -run TestUnitTime -v -bench Unit
func BenchmarkUnit(b *testing.B) {
	for _, name := range twoChips {
		b.Run(name, func(b *testing.B) {
			f := newFactory(b, benchProduct(b, name))
			defer f.close()
			began := processorTime(b)
			n := 0
			for b.Loop() {
				oneUnit(b, f, name, false)
				n++
			}
			b.ReportMetric((processorTime(b)-began).Seconds()*1000/float64(n), "cpu-ms/unit")
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchProduct(t testing.TB, name string) *provision.Job {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	path, err := sample.Write(t.TempDir(), sample.Product{Chip: m, Name: "p", Profile: "release", AppSize: 900 << 10, AppSpace: 0x100000, Baud: 921600})
	if err != nil {
		t.Fatal(err)
	}
	r, err := recipe.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	job, err := provision.NewJob(r)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func oneUnit(t testing.TB, f *factory, name string, pace bool) (time.Duration, *meter, *timedReset) {
	t.Helper()
	m := f.jobs[0].Recipe.Model()
	boards++
	c, err := espsim.New(espsim.Options{
		Model: m, MAC: chip.MAC{2, 0xBE, 0, 0, byte(boards >> 8), byte(boards)}, Revision: max(m.Lockdown.ClosedMinimum, 4), AppPrints: sample.AppText, Pace: pace,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	line := &meter{Port: port.FromSim(c, "sim://"+name), baud: 115200}
	reset := &timedReset{line: line}
	began := time.Now()
	e := &provision.Engine{Store: f.store, Journal: f.jrn, Station: "line-3", Slot: "1"}
	res := e.Run(t.Context(), provision.Line{Port: line, Reset: reset}, f.jobs[0])
	if res.Verdict != provision.Pass {
		t.Fatalf("%s: %s", res.Verdict, res.Reason)
	}
	return time.Since(began), line, reset
}
