package report

import (
	"archive/zip"
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/xuri/excelize/v2"
)

// neutral keeps a text from being a formula in a spreadsheet: a text whose first
// visible character begins one gets an apostrophe before it. A text that begins
// with an apostrophe gets one too, so that nothing is ambiguous.
func neutral(s string) string {
	if strings.HasPrefix(s, "\t") || strings.HasPrefix(s, "\r") || strings.HasPrefix(s, "\n") {
		return "'" + s
	}
	switch c := strings.TrimLeftFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }); {
	case c == "":
		return s
	case strings.ContainsRune("=+-@'＝＋－＠", []rune(c)[0]):
		return "'" + s
	}
	return s
}

// Cells of the list of units: strings, or numbers as int64.
var unitColumns = []string{
	"unit", "serial", "simulated", "state", "cause", "reason", "attempts", "first_pass", "reworked", "chip", "revision", "recipe",
	"recipe_revision", "profile", "key_fingerprint", "station", "slot", "operator", "begun", "ended", "cycle_ms", "entry",
}

func (u LotUnit) cells() []any {
	return []any{
		u.Unit, u.Serial, yes(u.Simulated), string(u.State), u.Cause, u.Reason, int64(u.Attempts), yes(u.FirstPass), yes(u.Reworked), u.Chip, u.Revision,
		u.Recipe, int64(u.RecipeRev), u.Profile, u.Fingerprint, u.Station, u.Slot, u.Operator, u.Begun, u.Ended, u.CycleMS, int64(u.Entry),
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// CSV is the list of units (RFC 4180, UTF-8), one line per unit.
func (l *Lot) CSV() ([]byte, error) {
	var out bytes.Buffer
	w := csv.NewWriter(&out)
	w.UseCRLF = true
	_ = w.Write(unitColumns) // errors of a Writer stay, and Error tells them
	for _, u := range l.Units {
		cells := u.cells()
		row := make([]string, len(cells))
		for i, c := range cells {
			switch v := c.(type) {
			case int64:
				row[i] = strconv.FormatInt(v, 10)
			case string:
				row[i] = neutral(v)
			}
		}
		_ = w.Write(row)
	}
	w.Flush()
	return out.Bytes(), w.Error()
}

// facts is the report's front page as names and values.
func (l *Lot) facts() [][2]any {
	c, s := l.Counts, l.Simulated
	out := [][2]any{
		{"report of", l.name()},
		{"stations", strings.Join(l.Stations, ", ")},
		{"operators", strings.Join(l.Operators, ", ")},
		{"recipes", strings.Join(l.Recipes, ", ")},
		{"tools", strings.Join(l.Tools, ", ")},
		{"first entry", l.First},
		{"last entry", l.Last},
		{"ordered", int64(l.Ordered)},
		{"remaining", int64(l.Remaining)},
		{"units", int64(c.Units)},
	}
	for _, st := range states {
		out = append(out, [2]any{string(st), int64(*c.of(st))})
	}
	out = append(out, [][2]any{
		{"reworked", int64(c.Reworked)},
		{"first-pass yield %", l.FirstPass.Percent},
		{"final yield %", l.Final.Percent},
		{"attempts", int64(l.Attempts)},
		{"attempts on unknown boards", int64(l.Unknown)},
		{"simulated units, not counted above", int64(s.Units)},
		{"cycle time of passing units: count", int64(l.Cycle.Units)},
		{"min ms", l.Cycle.MinMS},
		{"mean ms", l.Cycle.MeanMS},
		{"p50 ms", l.Cycle.P50MS},
		{"p90 ms", l.Cycle.P90MS},
		{"p95 ms", l.Cycle.P95MS},
		{"p99 ms", l.Cycle.P99MS},
		{"max ms", l.Cycle.MaxMS},
		{"units with a serial number", int64(l.Serials.Units)},
		{"units without", int64(l.Serials.Without)},
	}...)
	return out
}

// XLSX is the report as a workbook: summary, units, scrap reasons, cycle times
// and serial numbers.
func (l *Lot) XLSX() ([]byte, error) {
	x := excelize.NewFile()
	defer func() { _ = x.Close() }() // nothing is on disk
	head, err := x.NewStyle(&excelize.Style{
		Font: &excelize.Font{Bold: true, Color: "FFFFFF"}, Fill: excelize.Fill{Type: "pattern", Pattern: 1, Color: []string{"2B3A4A"}},
	})
	if err != nil {
		return nil, err
	}
	summary := [][]any{}
	for _, f := range l.facts() {
		summary = append(summary, f[:])
	}
	units := [][]any{}
	for _, u := range l.Units {
		units = append(units, u.cells())
	}
	reasons := [][]any{}
	for _, r := range l.Reasons {
		reasons = append(reasons, []any{string(r.State), r.Cause, r.Reason, int64(r.Units)})
	}
	cycles := [][]any{}
	for _, b := range l.Cycle.Histogram {
		cycles = append(cycles, []any{b.FromMS, b.ToMS, int64(b.Units)})
	}
	serials := [][]any{}
	for _, g := range l.Serials.Gaps {
		serials = append(serials, []any{"gap", g.From, g.To, g.Missing, ""})
	}
	for _, d := range l.Serials.Duplicates {
		serials = append(serials, []any{"duplicate", d.Serial, d.Serial, int64(len(d.Units)), strings.Join(d.Units, ", ")})
	}
	for _, s := range []struct {
		name    string
		columns []string
		widths  []float64
		rows    [][]any
	}{
		{"Summary", []string{"fact", "value"}, []float64{36, 60}, summary},
		{"Units", unitColumns, []float64{19, 14, 10, 13, 11, 50, 9, 9, 9, 9, 9, 20, 9, 10, 20, 12, 10, 12, 25, 25, 10, 10}, units},
		{"Scrap reasons", []string{"state", "cause", "reason", "units"}, []float64{14, 12, 90, 8}, reasons},
		{"Cycle time", []string{"from_ms", "to_ms", "units"}, []float64{12, 12, 10}, cycles},
		{"Serial numbers", []string{"finding", "from", "to", "count", "units"}, []float64{12, 22, 22, 10, 60}, serials},
	} {
		if err := sheet(x, s.name, s.columns, s.widths, head, s.rows); err != nil {
			return nil, err
		}
	}
	if err := x.DeleteSheet("Sheet1"); err != nil {
		return nil, err
	}
	x.SetActiveSheet(0)
	created := l.created.UTC().Format(time.RFC3339)
	err = x.SetDocProps(&excelize.DocProperties{
		Creator: "provisiond", LastModifiedBy: "provisiond", Created: created, Modified: created, Title: neutral("Report of " + l.name()),
	})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := x.Write(&out); err != nil {
		return nil, err
	}
	return repack(out.Bytes())
}

func sheet(x *excelize.File, name string, columns []string, widths []float64, head int, rows [][]any) error {
	if _, err := x.NewSheet(name); err != nil {
		return err
	}
	w, err := x.NewStreamWriter(name)
	if err != nil {
		return err
	}
	for i, width := range widths {
		if err := w.SetColWidth(i+1, i+1, width); err != nil {
			return err
		}
	}
	err = w.SetPanes(&excelize.Panes{Freeze: true, YSplit: 1, TopLeftCell: "A2", ActivePane: "bottomLeft"})
	if err != nil {
		return err
	}
	top := make([]any, len(columns))
	for i, c := range columns {
		top[i] = excelize.Cell{StyleID: head, Value: c}
	}
	for n, row := range append([][]any{top}, rows...) {
		cells := slices.Clone(row)
		for i, c := range cells {
			if s, ok := c.(string); ok {
				cells[i] = neutral(s)
			}
		}
		if err := w.SetRow(fmt.Sprintf("A%d", n+1), cells); err != nil {
			return err
		}
	}
	return w.Flush()
}

// repack writes a zip file anew: members in the order of their names, one fixed
// date, so that equal content gives equal bytes.
func repack(b []byte) ([]byte, error) {
	in, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	slices.SortFunc(in.File, func(a, b *zip.File) int { return strings.Compare(a.Name, b.Name) })
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, f := range in.File {
		r, err := f.Open()
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
		to, err := w.CreateHeader(&zip.FileHeader{Name: f.Name, Method: zip.Deflate})
		if err != nil {
			return nil, err
		}
		if _, err := to.Write(content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
