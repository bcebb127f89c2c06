package main

import (
	"crypto/sha256"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/efuse/table"
)

// idfField is a row of ESP-IDF's table with the rows that continue it.
type idfField struct {
	name    string
	aliases []string
	block   int
	parts   []table.Part
}

// compare checks every data file against the checkout: the source file's hash,
// and that both say the same about every field and every protection bit.
func compare(dir, idf string) error {
	files, _, err := load(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		var rows []idfField
		for _, src := range f.sources {
			data, err := os.ReadFile(filepath.Join(idf, src.File))
			if err != nil {
				return err
			}
			if sum := fmt.Sprintf("%x", sha256.Sum256(data)); sum != src.SHA256 {
				errs = append(errs, fmt.Errorf("%s: sha256 %s, our source record says %s", src.File, sum, src.SHA256))
			}
			more, err := parseIDF(string(data))
			if err != nil {
				return fmt.Errorf("%s: %w", src.File, err)
			}
			rows = append(rows, more...)
		}
		errs = append(errs, f.against(rows)...)
	}
	return errors.Join(errs...)
}

// parseIDF reads ESP-IDF's format: name, block, first bit, bit count, comment
// with the aliases in brackets. A row without a name continues the one above.
func parseIDF(text string) ([]idfField, error) {
	r := csv.NewReader(strings.NewReader(text))
	r.Comment, r.TrimLeadingSpace, r.LazyQuotes, r.FieldsPerRecord = '#', true, true, -1
	var out []idfField
	for {
		col, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		line, _ := r.FieldPos(0)
		if len(col) < 5 {
			return nil, fmt.Errorf("line %d: %d columns", line, len(col))
		}
		block, err1 := strconv.Atoi(strings.TrimPrefix(col[1], "EFUSE_BLK"))
		bit, err2 := strconv.Atoi(col[2])
		count := 256
		var err3 error
		if col[3] != "MAX_BLK_LEN" {
			count, err3 = strconv.Atoi(col[3])
		}
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		part := table.Part{Bit: bit, Len: count}
		if name := strings.TrimSpace(col[0]); name != "" {
			list, _, _ := strings.Cut(strings.TrimPrefix(col[4], "["), "]")
			out = append(out, idfField{name: name, aliases: strings.Fields(list), block: block, parts: []table.Part{part}})
		} else if len(out) > 0 && out[len(out)-1].block == block {
			out[len(out)-1].parts = append(out[len(out)-1].parts, part)
		} else {
			return nil, fmt.Errorf("line %d continues nothing", line)
		}
	}
}

// whole names the field that upstream's table splits into X and X_H, or X_LO and X_HI,
// and that is one here.
func (f *file) whole(of string) string {
	for _, suffix := range []string{"_H", "_LO", "_HI"} {
		name, ok := strings.CutSuffix(of, suffix)
		if ok && slices.ContainsFunc(f.fields, func(x table.Field) bool { return x.Name == name && len(x.Parts) > 1 }) {
			return name
		}
	}
	return of
}

// half reports whether upstream means a half of a key block (KEY0.LOW), with the
// same protection bit.
func (f *file) half(kind, of string, bit int) bool {
	block, _, dotted := strings.Cut(of, ".")
	return dotted && kind == "RD_DIS" && slices.ContainsFunc(f.blocks, func(b table.Block) bool {
		return b.Name == block && len(b.RDDisAll) > 1 && slices.Contains(b.RDDisAll, bit)
	})
}

// against lists the differences.
func (f *file) against(rows []idfField) []error {
	var errs []error
	differ := func(format string, args ...any) { errs = append(errs, fmt.Errorf(f.base()+": "+format, args...)) }
	byName := map[string]int{} // ours, by any name
	for i, x := range f.fields {
		for _, n := range append([]string{x.Name}, x.Aliases...) {
			byName[n] = i
		}
	}
	mask := map[string]int{} // first bit of WR_DIS and RD_DIS
	for _, n := range []string{"WR_DIS", "RD_DIS"} {
		mask[n] = f.fields[byName[n]].Parts[0].Bit
	}
	named, locked, hidden, absent := map[string]bool{}, map[string]int{}, map[string][]int{}, map[string]bool{}
	for _, r := range rows {
		// One of the tables writes WR_DIS_X for WR_DIS.X.
		if of, ok := strings.CutPrefix(r.name, "WR_DIS_"); ok {
			r.name = "WR_DIS." + of
		}
		kind, of, ok := strings.Cut(r.name, ".")
		if ok && (kind == "WR_DIS" || kind == "RD_DIS") {
			bit := r.parts[0].Bit - mask[kind]
			if slices.Contains(f.absent, of) {
				continue
			}
			if _, isField := byName[of]; !isField {
				of = f.whole(of)
			}
			if i, isField := byName[of]; isField {
				name := f.fields[i].Name
				if kind == "WR_DIS" {
					if was, twice := locked[name]; twice && was != bit {
						differ("%s: WR_DIS bits %d and %d upstream", name, was, bit)
					}
					locked[name] = bit
				} else {
					for b := range r.parts[0].Len {
						hidden[name] = append(hidden[name], bit+b)
					}
				}
			}
			if b := slices.IndexFunc(f.blocks, func(b table.Block) bool { return b.Name == of || slices.Contains(b.Aliases, of) }); b >= 0 {
				if kind == "WR_DIS" && f.blocks[b].WRDis != bit || kind == "RD_DIS" && !slices.Contains(f.blocks[b].RDDisAll, bit) {
					differ("block %s: %s bit %d upstream", of, kind, bit)
				}
			} else if _, isField := byName[of]; !isField && !f.half(kind, of, bit) {
				differ("%s protects nothing we know", r.name)
			}
			continue
		}
		i, known := byName[r.name]
		if slices.Contains(f.absent, r.name) {
			absent[r.name] = true
			if known {
				differ("field %s is said to be absent and is here", r.name)
			}
			continue
		}
		if !known {
			differ("field %s is missing", r.name)
			continue
		}
		x := f.fields[i]
		named[x.Name] = true
		if x.Block != r.block || !slices.Equal(x.Parts, r.parts) {
			differ("field %s: block %d %v here, block %d %v upstream", r.name, x.Block, x.Parts, r.block, r.parts)
		}
		for _, a := range r.aliases {
			if byName[a] != i {
				differ("field %s: alias %s is missing", r.name, a)
			}
		}
	}
	for _, a := range f.absent {
		if !absent[a] {
			differ("field %s is absent upstream too: the record says nothing", a)
		}
	}
	for _, x := range f.fields {
		if x.InCSV != named[x.Name] {
			differ("field %s: origin is wrong", x.Name)
		}
		bit, ok := locked[x.Name]
		if !ok {
			bit = table.None
		}
		if x.InCSV && x.WRDis != bit {
			differ("field %s: WR_DIS bit %d here, %d upstream", x.Name, x.WRDis, bit)
		}
		if x.InCSV && !slices.Equal(x.RDDisAll, hidden[x.Name]) {
			differ("field %s: RD_DIS bits %v here, %v upstream", x.Name, x.RDDisAll, hidden[x.Name])
		}
	}
	return errs
}
