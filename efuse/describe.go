package efuse

import (
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/provisiond/provisiond/efuse/table"
)

// FieldState is a field as it stands in a snapshot.
type FieldState struct {
	Name           string `json:"name"`
	Block          string `json:"block"`
	Bits           int    `json:"bits"`
	Value          string `json:"value"` // hex; "fp:…" for a key that can be read, "" if it is hidden
	Meaning        string `json:"meaning,omitempty"`
	ReadProtected  bool   `json:"read_protected"`
	WriteProtected bool   `json:"write_protected"`
	Comment        string `json:"comment"`
}

// Description is a snapshot in words, for people (Text) and scripts (JSON).
type Description struct {
	Chip        string       `json:"chip"`
	Identity    *Identity    `json:"identity,omitempty"`
	Scheme      string       `json:"coding_scheme"`
	TableSource string       `json:"table_source"`
	Fields      []FieldState `json:"fields"`
	Unnamed     []BitRef     `json:"unnamed_bits"` // set, and no field has them
	Errors      []BlockError `json:"errors"`
	Problems    []string     `json:"problems"` // what could not be decoded
}

// Describe lists every field with its value, meaning and protections.
func Describe(s *Snapshot) Description {
	d := Description{
		Chip: s.m.Name, TableSource: s.t.Source().String(), Scheme: "hidden",
		Fields: []FieldState{}, Unnamed: []BitRef{}, Errors: append([]BlockError{}, s.BlockErrors()...), Problems: []string{},
	}
	if scheme, err := s.CodingScheme(); err == nil {
		d.Scheme = scheme.String()
	}
	if id, err := s.Identity(); err == nil {
		d.Identity = &id
	} else {
		d.Problems = append(d.Problems, err.Error())
	}
	n := namerOf(s.t)
	for _, f := range s.t.Fields() {
		b := n.blocks[f.Block]
		st := FieldState{
			Name: f.Name, Block: b.Name, Bits: f.Len(), Comment: f.Comment,
			ReadProtected:  s.readProtected(f.RDDisAll),
			WriteProtected: s.writeProtected(f.WRDis) || s.writeProtected(b.WRDis),
		}
		switch {
		case st.ReadProtected:
			st.Meaning = "hidden"
		case b.Key:
			st.Value, st.Meaning = s.describeKey(b)
		default:
			st.Value = s.hex(f)
			st.Meaning = s.meaning(f)
		}
		d.Fields = append(d.Fields, st)
	}
	for i, b := range n.blocks {
		for w, v := range s.blocks[i].words {
			for ; v != 0 && !b.Key; v &= v - 1 {
				if bit := 32*w + bits.TrailingZeros32(v); n.ref(i, bit).Field == "" {
					d.Unnamed = append(d.Unnamed, n.ref(i, bit))
				}
			}
		}
	}
	return d
}

// describeKey describes a key block; of one that holds two keys both.
func (s *Snapshot) describeKey(b table.Block) (value, meaning string) {
	var values, meanings []string
	for _, k := range s.KeyBlocks() {
		if k.Block != b.Index {
			continue
		}
		v, m := fingerprintPrefix+k.Fingerprint.String(), k.Purpose
		if k.Zero {
			v = "0x0"
		}
		if k.Free {
			m = "free"
		}
		values, meanings = append(values, v), append(meanings, m)
	}
	return strings.Join(slices.Compact(values), " "), strings.Join(slices.Compact(meanings), ", ")
}

// hex writes a field of any length.
func (s *Snapshot) hex(f table.Field) string {
	list := f.Bits()
	nibbles := make([]byte, (len(list)+3)/4)
	for i, bit := range list {
		if s.blocks[f.Block].words[bit/32]>>(bit%32)&1 != 0 {
			nibbles[len(nibbles)-1-i/4] |= 1 << (i % 4)
		}
	}
	var b strings.Builder
	for _, x := range nibbles {
		fmt.Fprintf(&b, "%x", x)
	}
	if out := strings.TrimLeft(b.String(), "0"); out != "" {
		return "0x" + out
	}
	return "0x0"
}

func (s *Snapshot) meaning(f table.Field) string {
	if f.Len() > 32 {
		return ""
	}
	v := s.value(f)
	if strings.HasPrefix(f.Name, "KEY_PURPOSE_") {
		return purposeName(s.t, v)
	}
	if f.Name == s.m.EFuse.FlashCryptCount {
		if bits.OnesCount64(v)%2 == 0 {
			return "flash encryption off"
		}
		if v == uint64(s.m.EFuse.FlashCryptCountFull) {
			return "flash encryption on for good"
		}
		return "flash encryption on"
	}
	return f.Meaning(v)
}

// Text writes the description as a table.
func (d Description) Text(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(tw, format+"\n", args...) } // Flush has the error
	line("chip %s, eFuse coding %s", d.Chip, d.Scheme)
	if d.Identity != nil {
		line("MAC %v, revision %v, package %d, factory data %v", d.Identity.MAC, d.Identity.Revision, d.Identity.Package, d.Identity.BlockRevision)
	}
	for _, p := range d.Problems {
		line("PROBLEM: %s", p)
	}
	for _, e := range d.Errors {
		line("ERROR: %v", e)
	}
	line("")
	line("field\tblock\tvalue\tmeaning\tprotected\tcomment")
	for _, f := range d.Fields {
		protected := "-"
		switch {
		case f.ReadProtected && f.WriteProtected:
			protected = "read, write"
		case f.ReadProtected:
			protected = "read"
		case f.WriteProtected:
			protected = "write"
		}
		value := f.Value
		if len(value) > 21 && strings.HasPrefix(value, fingerprintPrefix) {
			value = value[:19] + "…"
		}
		line("%s\t%s\t%s\t%s\t%s\t%s", f.Name, f.Block, orDash(value), orDash(f.Meaning), protected, f.Comment)
	}
	for _, b := range d.Unnamed {
		line("set, but no field has it: %v", b)
	}
	return tw.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
