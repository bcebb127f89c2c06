package report

import (
	"archive/zip"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/xuri/excelize/v2"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

var keepDir = flag.String("keep", "", "keep the sample reports in this folder, to look at them")

// sampleLot is a lot in which everything happens.
func sampleLot(t testing.TB) *book {
	b := newBook(t, "line-2")
	dice := rand.New(rand.NewPCG(1, 2))
	for i := range 160 {
		r := run{
			mac: mac(i), lot: "L-2026-47", slot: fmt.Sprintf("A%d", i%4+1), serial: fmt.Sprintf("SN%06d", 1000+i), verdict: provision.Pass,
			operator: []string{"ada", "grace"}[i/80], ms: 38000 + int64(dice.ExpFloat64()*4000),
		}
		switch {
		case i == 17, i == 41, i == 118: // a second try helps
			again := r
			r.verdict, r.cause, r.stop = provision.Error, provision.CauseStation, "flash"
			r.reason = "the flash could not be written at any baud rate: the line is noisy: write bootloader at 0x0: no answer within 3s"
			b.run(r)
			r = again
		case i == 30, i == 31:
			r.verdict, r.cause, r.stop = provision.Fail, provision.CauseUnit, "boot-check"
			r.reason = fmt.Sprintf("the unit did not boot: \"app running\" did not come within 10s; the last text was \"rst:0x7 (TG0WDT_SYS_RST) %d\"", i)
		case i == 52:
			r.verdict, r.cause, r.stop = provision.Quarantined, provision.CauseQuarantined, "burn-key"
			r.reason = fmt.Sprintf("burn-key: the block reads back wrong on unit %s: %s", mac(i), strings.Repeat("word 3 is 0x00000000 and not what was written; ", 6))
		case i == 77:
			r.verdict, r.cause, r.stop = provision.Aborted, provision.CauseCancelled, "flash"
			r.reason = "stopped before it was finished"
		case i == 90:
			r.verdict, r.cause, r.stop = provision.Fail, provision.CauseRefused, "inspect"
			r.reason = "the chip is an ESP32 and recipe sensor is for esp32c3"
		case i == 101:
			r.verdict, r.stop = "", "flash"
		case i == 110:
			r.serial = "SN001109" // the label of the board before
		case i == 120, i == 121, i == 122:
			continue // numbers that nobody used
		}
		b.run(r)
		if i == 60 { // the operator puts a finished unit in again
			b.run(run{mac: mac(i), lot: "L-2026-47", serial: r.serial, verdict: provision.Fail, cause: provision.CauseRefused, stop: "plan", reason: "unit is finished already"})
		}
	}
	b.run(run{mac: mac(1000), lot: "other", verdict: provision.Pass})
	for i := range 3 {
		b.run(run{mac: simMAC(i), lot: "L-2026-47", verdict: provision.Pass})
	}
	b.add("A1", chip.MAC{}, "", "connect", journal.KindIntent, map[string]any{"lot": "L-2026-47", "recipe": "sensor", "recipe_revision": 3})
	b.add("A1", chip.MAC{}, "", "verdict", journal.KindVerdict, map[string]any{"verdict": "ERROR", "cause": "station", "reason": "no answer"})
	return b
}

func TestLot(t *testing.T) {
	l := NewLot(projectAll(t, sampleLot(t)), LotOptions{Lot: "L-2026-47", Ordered: 160})
	want := Counts{Units: 157, Pass: 151, Fail: 2, Error: 0, Aborted: 1, Quarantined: 1, Refused: 1, Open: 1, Reworked: 3, FirstPass: 148}
	if d := cmp.Diff(want, l.Counts); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(Counts{Units: 3, Pass: 3, FirstPass: 3}, l.Simulated); d != "" {
		t.Error(d)
	}
	if l.Final != (Yield{151, 156, "96.79"}) || l.FirstPass != (Yield{148, 156, "94.87"}) {
		t.Errorf("yields %v, %v", l.Final, l.FirstPass)
	}
	if l.Unknown != 1 || l.Attempts != 161 || l.Remaining != 9 || l.Cycle.Units != 151 {
		t.Errorf("unknown %d, attempts %d, remaining %d, cycle %d", l.Unknown, l.Attempts, l.Remaining, l.Cycle.Units)
	}
	if l.Reasons[0].Units != 2 || l.Reasons[0].State != "FAIL" || strings.Contains(l.Reasons[0].Reason, "rst:") {
		t.Errorf("the two boards that did not boot are one reason: %+v", l.Reasons[0])
	}
	for _, r := range l.Reasons {
		if strings.Contains(r.Reason, "24:0a") {
			t.Errorf("a reason speaks of one unit: %s", r.Reason)
		}
	}
	wantGaps := []SerialGap{{"SN001110", "SN001110", 1}, {"SN001120", "SN001122", 3}}
	if d := cmp.Diff(wantGaps, l.Serials.Gaps); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]SerialTwice{{"SN001109", []string{mac(109).String(), mac(110).String()}}}, l.Serials.Duplicates); d != "" {
		t.Error(d)
	}
	n := 0
	for _, b := range l.Cycle.Histogram {
		n += b.Units
	}
	if n != 151 || len(l.Cycle.Histogram) > 21 || l.Cycle.P50MS > l.Cycle.P95MS || l.Cycle.MinMS < 38000 {
		t.Errorf("%+v", l.Cycle)
	}
	if other := NewLot(projectAll(t, sampleLot(t)), LotOptions{Lot: "other"}); other.Counts.Units != 1 || other.Counts.Pass != 1 {
		t.Errorf("%+v", other.Counts)
	}
}

// TestProjectLot: the small projection gives the same report.
func TestProjectLot(t *testing.T) {
	b := sampleLot(t)
	small, err := ProjectLot(b.all())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(NewLot(projectAll(t, b), LotOptions{}), NewLot(small, LotOptions{}), cmp.AllowUnexported(Lot{})); d != "" {
		t.Error(d)
	}
}

func TestYield(t *testing.T) {
	for _, c := range []struct {
		n, of int
		want  string
	}{{0, 0, ""}, {0, 3, "0.00"}, {1, 3, "33.33"}, {2, 3, "66.67"}, {3, 3, "100.00"}, {999999, 1000000, "99.99"}, {1, 2, "50.00"}} {
		if got := yield(c.n, c.of).Percent; got != c.want {
			t.Errorf("%d of %d: %s, want %s", c.n, c.of, got, c.want)
		}
	}
}

func TestCycle(t *testing.T) {
	var ms []int64
	for i := 100; i >= 1; i-- {
		ms = append(ms, int64(i)*1000)
	}
	c := cycle(ms)
	if c.P50MS != 50000 || c.P90MS != 90000 || c.P95MS != 95000 || c.P99MS != 99000 || c.MinMS != 1000 || c.MaxMS != 100000 || c.MeanMS != 50500 {
		t.Errorf("%+v", c)
	}
	if one := cycle([]int64{7}); one.P50MS != 7 || one.P99MS != 7 || len(one.Histogram) != 1 || one.Histogram[0] != (Bucket{7, 8, 1}) {
		t.Errorf("%+v", one)
	}
}

// formats of the report.
var formats = map[string]func(*Lot) ([]byte, error){"json": (*Lot).JSON, "csv": (*Lot).CSV, "xlsx": (*Lot).XLSX, "pdf": (*Lot).PDF}

// TestSameBytes: the same journal gives the same bytes, on another day too.
func TestSameBytes(t *testing.T) {
	for name, format := range formats {
		var first []byte
		for i := range 3 {
			b, err := format(NewLot(projectAll(t, sampleLot(t)), LotOptions{Lot: "L-2026-47", Ordered: 160}))
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = b
				if *keepDir != "" {
					if err := os.WriteFile(filepath.Join(*keepDir, "lot."+name), b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(1100 * time.Millisecond) // a clock with whole seconds would show
			} else if !bytes.Equal(first, b) {
				t.Errorf("%s: %d and %d bytes differ", name, len(first), len(b))
			}
		}
		if bytes.Contains(first, []byte(time.Now().UTC().Format("2006-01-02T15:04"))) || bytes.Contains(first, []byte(time.Now().UTC().Format("D:20060102"))) && time.Now().Day() != 22 {
			t.Errorf("%s holds the time of day", name)
		}
	}
}

// TestEmpty: a report of nothing is a report.
func TestEmpty(t *testing.T) {
	p := projectAll(t, newBook(t, "line-2"))
	for name, format := range formats {
		if b, err := format(NewLot(p, LotOptions{})); err != nil || len(b) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFormulas: what a board or a person wrote never becomes a formula.
func TestFormulas(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "abc": "abc", "=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@SUM(A1)": "'@SUM(A1)", "\t=1": "'\t=1", "\r=1": "'\r=1", "\n1": "'\n1",
		"  =1": "'  =1", "\u00a0=1": "'\u00a0=1", "\u200b=1": "'\u200b=1", "＝1": "'＝1", "'x": "''x", "a=1": "a=1", "  ": "  ",
	} {
		if got := neutral(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	b := newBook(t, "line-2")
	evil := `=cmd|' /C calc'!A0`
	b.run(run{mac: mac(1), serial: evil, operator: "+ada", lot: "@lot", verdict: provision.Fail, cause: provision.CauseUnit, stop: "boot-check", reason: "-2+3"})
	l := NewLot(projectAll(t, b), LotOptions{})
	text, err := l.CSV()
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
	if err != nil || len(rows) != 2 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	cell := func(name string) string {
		for i, c := range rows[0] {
			if c == name {
				return rows[1][i]
			}
		}
		return "no column " + name
	}
	for name, want := range map[string]string{"serial": "'" + evil, "operator": "'+ada", "reason": "'-2+3", "unit": mac(1).String()} {
		if got := cell(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	book, err := l.XLSX()
	if err != nil {
		t.Fatal(err)
	}
	x, err := excelize.OpenReader(bytes.NewReader(book))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	if got, _ := x.GetCellValue("Units", "B2"); got != "'"+evil {
		t.Errorf("xlsx: %q", got)
	}
	z, err := zip.NewReader(bytes.NewReader(book), int64(len(book)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		var content bytes.Buffer
		if _, err := content.ReadFrom(r); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content.Bytes(), []byte("<f>")) {
			t.Errorf("%s has a formula", f.Name)
		}
	}
}

// TestSheets: what the workbook and the JSON say is what was counted.
func TestSheets(t *testing.T) {
	l := NewLot(projectAll(t, sampleLot(t)), LotOptions{Lot: "L-2026-47"})
	b, err := l.XLSX()
	if err != nil {
		t.Fatal(err)
	}
	x, err := excelize.OpenReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	if d := cmp.Diff([]string{"Summary", "Units", "Scrap reasons", "Cycle time", "Serial numbers"}, x.GetSheetList()); d != "" {
		t.Error(d)
	}
	rows, err := x.GetRows("Units")
	if err != nil || len(rows) != len(l.Units)+1 {
		t.Fatalf("%d rows for %d units, %v", len(rows), len(l.Units), err)
	}
	summary, err := x.GetRows("Summary")
	if err != nil {
		t.Fatal(err)
	}
	facts := map[string]string{}
	for _, r := range summary {
		if len(r) == 2 {
			facts[r[0]] = r[1]
		}
	}
	if facts["PASS"] != "151" || facts["final yield %"] != "96.79" || facts["simulated units, not counted above"] != "3" || facts["REFUSED"] != "1" {
		t.Errorf("%v", facts)
	}
	text, err := l.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var again Lot
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	again.created = l.created
	if d := cmp.Diff(l, &again, cmp.AllowUnexported(Lot{})); d != "" {
		t.Error(d)
	}
}
