package main

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

// file is a data file: its comment lines and its records in order.
type file struct {
	comments []string // without the leading "#"; they stand at the top
	chip     string
	first    string // the first silicon revision that this is the table of, "" for the oldest
	sources  []table.Source
	absent   []string // fields of the sources that this silicon lacks
	blocks   []table.Block
	purposes []table.Purpose
	fields   []table.Field
}

// columns is how many columns each kind of record has, its kind included. A chip
// with several tables names the first revision of a later one in a third column.
var columns = map[string][]int{"chip": {2, 3}, "source": {4}, "absent": {2}, "block": {10}, "purpose": {7, 8}, "field": {10}}

var (
	orders   = []string{"same", "reversed"}
	readings = []string{table.ReadAny: "any", table.ReadMust: "must", table.ReadNever: "never"}
	origins  = []string{"reg", "csv"}
)

// parse reads a data file. What it accepts, encode writes again byte by byte.
func parse(data []byte) (*file, error) {
	f := &file{}
	text, ok := strings.CutSuffix(string(data), "\n")
	if !ok {
		return nil, fmt.Errorf("line %d: the last line does not end", bytes.Count(data, []byte("\n"))+1)
	}
	for i, line := range strings.Split(text, "\n") {
		if err := f.line(line); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	if f.chip == "" || len(f.sources) == 0 {
		return nil, fmt.Errorf("a chip and a source record are needed")
	}
	return f, nil
}

func (f *file) line(line string) error {
	if c, ok := strings.CutPrefix(line, "#"); ok {
		if f.chip != "" {
			return fmt.Errorf("comment lines stand at the top")
		}
		f.comments = append(f.comments, c)
		return nil
	}
	col := strings.Split(line, ",")
	if !slices.Contains(columns[col[0]], len(col)) {
		return fmt.Errorf("a %q record of %d columns is not known", col[0], len(col))
	}
	for i, c := range col {
		if c == "" {
			return fmt.Errorf("column %d is empty: write - for none", i+1)
		}
	}
	if rank(col[0]) < f.rank() {
		return fmt.Errorf("a %s record after a later kind", col[0])
	}
	p := columnParser{}
	switch col[0] {
	case "chip":
		if f.chip != "" || col[1] == "-" {
			return fmt.Errorf("one chip record with a name is needed")
		}
		f.chip = col[1]
		if len(col) == 3 {
			f.first = col[2]
			p.revision(f.first)
		}
	case "source":
		if slices.Contains(col, "-") {
			return fmt.Errorf("a source record without gaps is needed")
		}
		f.sources = append(f.sources, table.Source{File: col[1], Revision: col[2], SHA256: col[3]})
	case "absent":
		f.absent = append(f.absent, p.text(col[1]))
	case "block":
		b := table.Block{
			Index: p.number(col[1]), Name: p.text(col[2]), Aliases: p.list(col[3]),
			ReadOff: p.offset(col[4]), WriteOff: p.writeOffset(col[5]), Words: p.number(col[6]),
			WRDis: p.optional(col[7]), RDDisAll: p.numbers(col[8]), Key: p.choice(col[9], []string{"-", "key"}) == 1,
		}
		b.RDDis = first(b.RDDisAll)
		f.blocks = append(f.blocks, b)
	case "purpose":
		x := table.Purpose{
			Value: p.optional(col[1]), Name: p.text(col[2]), Block: p.none(col[3]), Bytes: p.number(col[4]),
			Reversed: p.choice(col[5], orders) == 1, Reading: table.Reading(p.choice(col[6], readings)),
		}
		if len(col) == 8 {
			if x.Sets = p.list(col[7]); x.Sets == nil {
				p.fail("a purpose that sets nothing has no such column")
			}
		}
		f.purposes = append(f.purposes, x)
	case "field":
		fd := table.Field{
			Name: p.text(col[1]), Aliases: p.list(col[2]), Block: p.number(col[3]), Parts: p.parts(col[4]),
			WRDis: p.optional(col[5]), RDDisAll: p.numbers(col[6]), InCSV: p.choice(col[7], origins) == 1,
			Values: p.values(col[8]), Comment: p.text(col[9]),
		}
		fd.RDDis = first(fd.RDDisAll)
		f.fields = append(f.fields, fd)
	}
	return p.err
}

func rank(kind string) int {
	return slices.Index([]string{"chip", "source", "absent", "block", "purpose", "field"}, kind)
}

// rank is the kind of the last record.
func (f *file) rank() int {
	switch {
	case len(f.fields) > 0:
		return 5
	case len(f.purposes) > 0:
		return 4
	case len(f.blocks) > 0:
		return 3
	case len(f.absent) > 0:
		return 2
	case len(f.sources) > 0:
		return 1
	}
	return 0
}

// encode writes the file in its one form.
func (f *file) encode() []byte {
	var b bytes.Buffer
	for _, c := range f.comments {
		fmt.Fprintf(&b, "#%s\n", c)
	}
	row := func(col ...string) { b.WriteString(strings.Join(col, ",") + "\n") }
	if f.first == "" {
		row("chip", f.chip)
	} else {
		row("chip", f.chip, f.first)
	}
	for _, x := range f.sources {
		row("source", x.File, x.Revision, x.SHA256)
	}
	for _, x := range f.absent {
		row("absent", x)
	}
	for _, x := range f.blocks {
		write := "-"
		if x.WriteOff != 0 {
			write = fmt.Sprintf("0x%03x", x.WriteOff)
		}
		row("block", strconv.Itoa(x.Index), x.Name, join(x.Aliases), fmt.Sprintf("0x%03x", x.ReadOff), write,
			strconv.Itoa(x.Words), optional(x.WRDis), numbers(x.RDDisAll), map[bool]string{false: "-", true: "key"}[x.Key])
	}
	for _, x := range f.purposes {
		col := []string{
			"purpose", optional(x.Value), x.Name, join(strings.Fields(x.Block)), strconv.Itoa(x.Bytes),
			orders[btoi(x.Reversed)], readings[x.Reading],
		}
		if len(x.Sets) > 0 {
			col = append(col, join(x.Sets))
		}
		row(col...)
	}
	for _, x := range f.fields {
		var parts, values []string
		for _, p := range x.Parts {
			parts = append(parts, fmt.Sprintf("%d+%d", p.Bit, p.Len))
		}
		for _, v := range x.Values {
			values = append(values, fmt.Sprintf("%d=%s", v.Value, v.Meaning))
		}
		vals := "-"
		if len(values) > 0 {
			vals = strings.Join(values, ";")
		}
		row("field", x.Name, join(x.Aliases), strconv.Itoa(x.Block), strings.Join(parts, " "), optional(x.WRDis),
			numbers(x.RDDisAll), origins[btoi(x.InCSV)], vals, x.Comment)
	}
	return b.Bytes()
}

// columnParser reads columns and keeps the first error.
type columnParser struct{ err error }

func (p *columnParser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

func (p *columnParser) text(s string) string {
	if s == "-" {
		p.fail("a name or comment is missing")
	}
	return s
}

// revision reads a silicon revision as it is written: 3.0.
func (p *columnParser) revision(s string) chip.Revision {
	r, err := chip.ParseRevision(s)
	if err != nil || r == 0 || r.String() != "v"+s {
		p.fail("%q is not a silicon revision after v0.0: write 3.0", s)
	}
	return r
}

func (p *columnParser) none(s string) string {
	l := p.list(s)
	if len(l) > 1 {
		p.fail("%q is not one name", s)
	}
	return strings.Join(l, "")
}

func (p *columnParser) number(s string) int {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != s {
		p.fail("%q is not a number", s)
	}
	return int(n)
}

func (p *columnParser) optional(s string) int {
	if s == "-" {
		return table.None
	}
	return p.number(s)
}

func (p *columnParser) writeOffset(s string) uint32 {
	if s == "-" {
		return 0
	}
	off := p.offset(s)
	if off == 0 {
		p.fail("write registers cannot be at offset 0")
	}
	return off
}

func (p *columnParser) offset(s string) uint32 {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 32)
	if err != nil || fmt.Sprintf("0x%03x", n) != s {
		p.fail("%q is not an offset: write 0x01c", s)
	}
	return uint32(n)
}

func (p *columnParser) list(s string) []string {
	if s == "-" {
		return nil
	}
	l := strings.Fields(s)
	if strings.Join(l, " ") != s || slices.Contains(l, "-") {
		p.fail("%q is not a list with single spaces", s)
	}
	return l
}

func (p *columnParser) numbers(s string) []int {
	var out []int
	for _, x := range p.list(s) {
		out = append(out, p.number(x))
	}
	return out
}

func (p *columnParser) parts(s string) []table.Part {
	var out []table.Part
	for _, x := range p.list(s) {
		bit, n, ok := strings.Cut(x, "+")
		if !ok {
			p.fail("%q is not first+count", x)
		}
		out = append(out, table.Part{Bit: p.number(bit), Len: p.number(n)})
	}
	if len(out) == 0 {
		p.fail("a field needs bits")
	}
	return out
}

func (p *columnParser) values(s string) []table.Value {
	if s == "-" {
		return nil
	}
	var out []table.Value
	for _, x := range strings.Split(s, ";") {
		v, text, ok := strings.Cut(x, "=")
		if !ok || text == "" {
			p.fail("%q is not value=meaning", x)
		}
		out = append(out, table.Value{Value: uint32(p.number(v)), Meaning: text})
	}
	return out
}

func (p *columnParser) choice(s string, of []string) int {
	i := slices.Index(of, s)
	if i < 0 {
		p.fail("%q is none of %s", s, strings.Join(of, ", "))
	}
	return max(i, 0)
}

func first(l []int) int {
	if len(l) == 0 {
		return table.None
	}
	return l[0]
}

func join(l []string) string {
	if len(l) == 0 {
		return "-"
	}
	return strings.Join(l, " ")
}

func numbers(l []int) string {
	var s []string
	for _, n := range l {
		s = append(s, strconv.Itoa(n))
	}
	return join(s)
}

func optional(n int) string {
	if n == table.None {
		return "-"
	}
	return strconv.Itoa(n)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// check looks for what no chip can have: bits outside a block or owned by two
// fields, names used twice, protection bits outside the masks.
func (f *file) check() error {
	owner := map[string]string{}
	claim := func(kind, name, by string) error {
		if o, taken := owner[kind+name]; taken {
			return fmt.Errorf("%s is a name of both %s and %s", name, o, by)
		}
		owner[kind+name] = by
		return nil
	}
	for i, b := range f.blocks {
		if b.Index != i || b.Words < 1 || b.Words > 8 {
			return fmt.Errorf("block %s: index %d at place %d, %d words", b.Name, b.Index, i, b.Words)
		}
		for _, n := range append([]string{b.Name}, b.Aliases...) {
			if err := claim("block ", n, b.Name); err != nil {
				return err
			}
		}
	}
	width := map[string]int{}
	for _, fd := range f.fields {
		if fd.Block >= len(f.blocks) {
			return fmt.Errorf("field %s: no block %d", fd.Name, fd.Block)
		}
		for _, n := range append([]string{fd.Name}, fd.Aliases...) {
			if err := claim("field ", n, fd.Name); err != nil {
				return err
			}
		}
		whole := 32 * f.blocks[fd.Block].Words
		for _, bit := range fd.Bits() {
			if bit >= whole {
				return fmt.Errorf("field %s: bit %d is outside block %d", fd.Name, bit, fd.Block)
			}
			if parent, _, dotted := strings.Cut(fd.Name, "."); fd.Len() == whole || dotted && width[parent] > fd.Len() {
				continue // names the block itself, or a part of a field that is named too
			}
			if err := claim(fmt.Sprintf("block %d ", fd.Block), fmt.Sprintf("bit %d", bit), fd.Name); err != nil {
				return err
			}
		}
		width[fd.Name] = fd.Len()
	}
	if width["WR_DIS"] == 0 || width["RD_DIS"] == 0 {
		return fmt.Errorf("no WR_DIS or no RD_DIS field")
	}
	inside := func(name string, wr int, rd []int) error {
		if wr >= width["WR_DIS"] || slices.ContainsFunc(rd, func(b int) bool { return b >= width["RD_DIS"] }) {
			return fmt.Errorf("%s: protection bit outside WR_DIS or RD_DIS", name)
		}
		return nil
	}
	for _, b := range f.blocks {
		if err := inside(b.Name, b.WRDis, b.RDDisAll); err != nil {
			return err
		}
	}
	for _, fd := range f.fields {
		if err := inside(fd.Name, fd.WRDis, fd.RDDisAll); err != nil {
			return err
		}
	}
	for _, p := range f.purposes {
		if err := claim("purpose ", p.Name, p.Name); err != nil {
			return err
		}
		if (p.Value == table.None) != (p.Block != "") {
			return fmt.Errorf("purpose %s: either a value or a slot", p.Name)
		}
		for _, n := range p.Sets {
			if width[n] != 1 {
				return fmt.Errorf("purpose %s sets %s, which is no field of one bit", p.Name, n)
			}
		}
		if p.Block == "" {
			continue
		}
		if !slices.ContainsFunc(f.blocks, func(b table.Block) bool {
			return b.Key && slices.ContainsFunc(append(b.Slots(), b.Whole()), func(s table.Slot) bool { return s.Name == p.Block && s.Bytes == p.Bytes })
		}) {
			return fmt.Errorf("purpose %s: no slot %s of %d bytes", p.Name, p.Block, p.Bytes)
		}
	}
	return nil
}
