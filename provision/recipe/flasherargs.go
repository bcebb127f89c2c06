package recipe

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// FlasherArgsName is the file that ESP-IDF's build leaves for flashing tools
// (ESP-IDF components/esptool_py/flasher_args.json.in).
const FlasherArgsName = "flasher_args.json"

// FlasherArgs is what provisiond needs of a flasher_args.json.
type FlasherArgs struct {
	Chip        string  // extra_esptool_args.chip
	FlashSize   string  // flash_settings.flash_size: 4MB, or detect or keep
	TableOffset *uint32 // partition-table.offset; nil when the build has no such entry
	Files       []FlasherFile
}

// FlasherFile is one entry of flash_files.
type FlasherFile struct {
	Offset uint32
	File   string // slash-separated, inside the build directory
	Name   string // the entry that describes the same file (bootloader, app, …), else its base name

	line int
}

// ParseFlasherArgs reads a flasher_args.json. It is strict about what it uses and
// leaves other keys alone. name is the file's name for errors, which are Errors.
func ParseFlasherArgs(name string, b []byte) (*FlasherArgs, error) {
	p := &jsonProblems{problems{file: name}}
	args := &FlasherArgs{}
	if root := p.root(b); root != nil {
		p.args(root, args)
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	return args, nil
}

// Encode writes the parts that ParseFlasherArgs reads. Parsing it gives the same
// again. It is for build directories that are not made by ESP-IDF.
func (a *FlasherArgs) Encode() []byte {
	type entry struct {
		Offset string `json:"offset"`
		File   string `json:"file,omitempty"`
	}
	files, doc := map[string]string{}, map[string]any{}
	for _, f := range a.Files {
		off := fmt.Sprintf("0x%x", f.Offset)
		files[off] = f.File
		if f.Name != path.Base(f.File) {
			doc[f.Name] = entry{off, f.File}
		}
	}
	if _, named := doc[tableEntry]; a.TableOffset != nil && !named {
		doc[tableEntry] = entry{Offset: fmt.Sprintf("0x%x", *a.TableOffset)}
	}
	doc["flash_files"] = files
	doc["flash_settings"] = map[string]string{"flash_size": a.FlashSize}
	doc["extra_esptool_args"] = map[string]string{"chip": a.Chip}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		panic("recipe: strings do not fail to marshal: " + err.Error())
	}
	return append(b, '\n')
}

const (
	tableEntry = "partition-table"
	rebuildFix = "build the firmware again with idf.py build"
)

// reservedKeys are the top-level keys that name no file.
var reservedKeys = []string{"write_flash_args", "flash_settings", "flash_files", "extra_esptool_args"}

func flashFilesPath(offset uint32) string { return fmt.Sprintf(`flash_files."0x%x"`, offset) }

type jsonProblems struct{ problems }

// node is a JSON value that knows its line and keeps repeated keys.
type node struct {
	line int
	kind byte // '{', '[', '"' or 0 for numbers, booleans and null
	text string
	keys []string
	vals []*node // of an object by keys, or of an array
}

// get gives the value of a key, or nil.
func (n *node) get(key string) *node {
	if i := slices.Index(n.keys, key); i >= 0 && n.kind == '{' {
		return n.vals[i]
	}
	return nil
}

// repeated gives the first key that stands twice in an object.
func (n *node) repeated() (string, *node) {
	seen := map[string]bool{}
	for i, k := range n.keys {
		if seen[k] {
			return k, n.vals[i]
		}
		seen[k] = true
	}
	return "", nil
}

func (p *jsonProblems) root(b []byte) *node {
	if len(b) > maxFile {
		p.add(0, "", fmt.Sprintf("is longer than %d bytes", maxFile), rebuildFix)
		return nil
	}
	if !utf8.Valid(b) {
		p.add(0, "", "is not UTF-8", rebuildFix)
		return nil
	}
	var whole json.RawMessage
	if err := json.Unmarshal(b, &whole); err != nil {
		line := 1
		var se *json.SyntaxError
		if errors.As(err, &se) {
			line += bytes.Count(b[:min(int(se.Offset), len(b))], []byte("\n"))
		}
		p.add(line, "", "is not JSON: "+strings.TrimPrefix(err.Error(), "json: "), rebuildFix)
		return nil
	}
	r := &jsonReader{b: b, dec: json.NewDecoder(bytes.NewReader(b)), line: 1}
	n, err := r.value()
	if err != nil {
		p.add(r.line, "", "is not JSON: "+err.Error(), rebuildFix)
		return nil
	}
	if n.kind != '{' {
		p.add(n.line, "", "is not a JSON object", rebuildFix)
		return nil
	}
	return n
}

// jsonReader makes nodes of tokens. Its input is valid JSON, so nesting is
// limited by encoding/json already.
type jsonReader struct {
	b    []byte
	dec  *json.Decoder
	line int
	at   int64 // how far line has been counted
}

func (r *jsonReader) token() (json.Token, error) {
	t, err := r.dec.Token()
	if end := r.dec.InputOffset(); end > r.at {
		r.line += bytes.Count(r.b[r.at:end], []byte("\n"))
		r.at = end
	}
	return t, err
}

func (r *jsonReader) value() (*node, error) {
	t, err := r.token()
	if err != nil {
		return nil, err
	}
	n := &node{line: r.line}
	switch v := t.(type) {
	case string:
		n.kind, n.text = '"', v
	case json.Delim:
		n.kind = byte(v)
		for r.dec.More() {
			if n.kind == '{' {
				k, err := r.token()
				if err != nil {
					return nil, err
				}
				s, ok := k.(string)
				if !ok {
					return nil, io.ErrUnexpectedEOF
				}
				n.keys = append(n.keys, s)
			}
			c, err := r.value()
			if err != nil {
				return nil, err
			}
			n.vals = append(n.vals, c)
		}
		if _, err := r.token(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (p *jsonProblems) args(root *node, args *FlasherArgs) {
	if k, again := root.repeated(); again != nil {
		p.add(again.line, keyPath("", k), "stands twice", rebuildFix)
	}
	args.Chip = p.member(root, "extra_esptool_args", "chip")
	args.FlashSize = p.member(root, "flash_settings", "flash_size")
	files := p.object(root, "flash_files")
	if files == nil {
		return
	}
	if len(files.keys) == 0 {
		p.add(files.line, "flash_files", "is empty", rebuildFix)
	}
	if len(files.keys) > maxImages {
		p.add(files.line, "flash_files", fmt.Sprintf("has %d entries, at most %d can be written", len(files.keys), maxImages), rebuildFix)
		return
	}
	seen := map[uint32]bool{}
	for i, key := range files.keys {
		v, field := files.vals[i], `flash_files.`+quote(key)
		off, ok := parseOffset(key)
		if !ok {
			p.add(v.line, field, "the key is not a flash offset", `offsets look like "0x10000"`)
			continue
		}
		if seen[off] {
			p.add(v.line, field, fmt.Sprintf("offset 0x%x stands twice", off), rebuildFix)
			continue
		}
		seen[off] = true
		file, ok := p.file(v, field)
		if !ok {
			continue
		}
		args.Files = append(args.Files, FlasherFile{Offset: off, File: file, Name: entryName(root, off, file), line: v.line})
	}
	slices.SortFunc(args.Files, func(a, b FlasherFile) int { return cmp.Compare(a.Offset, b.Offset) })
	if t := root.get(tableEntry); t != nil && t.get("offset") != nil {
		off, ok := parseOffset(t.get("offset").text)
		if !ok {
			p.add(t.line, tableEntry+".offset", "is not a flash offset", rebuildFix)
			return
		}
		args.TableOffset = &off
	}
}

// object gives a member that must be an object without repeated keys.
func (p *jsonProblems) object(root *node, key string) *node {
	n := root.get(key)
	if n == nil {
		p.add(root.line, key, "is missing", rebuildFix)
		return nil
	}
	if n.kind != '{' {
		p.add(n.line, key, "is not an object", rebuildFix)
		return nil
	}
	if k, again := n.repeated(); again != nil {
		p.add(again.line, key+"."+quote(k), "stands twice", rebuildFix)
		return nil
	}
	return n
}

// member gives a string inside an object.
func (p *jsonProblems) member(root *node, object, key string) string {
	n := p.object(root, object)
	if n == nil {
		return ""
	}
	field, v := object+"."+key, n.get(key)
	switch {
	case v == nil:
		p.add(n.line, field, "is missing", rebuildFix)
	case v.kind != '"':
		p.add(v.line, field, "is not a string", rebuildFix)
	default:
		if problem := badText(v.text, maxText); problem != "" {
			p.add(v.line, field, problem, rebuildFix)
			return ""
		}
		return v.text
	}
	return ""
}

// file checks the path of a file: inside the build directory, in one spelling.
func (p *jsonProblems) file(v *node, field string) (string, bool) {
	const fix = "list files outside the build directory in images: of the recipe"
	if v.kind != '"' {
		p.add(v.line, field, "is not a string", rebuildFix)
		return "", false
	}
	if problem := badText(v.text, 4096); problem != "" {
		p.add(v.line, field, problem, rebuildFix)
		return "", false
	}
	clean := path.Clean(v.text)
	if path.IsAbs(v.text) || strings.Contains(v.text, `\`) || slices.Contains(strings.Split(v.text, "/"), "..") || clean == "." {
		p.add(v.line, field, quote(v.text)+" is not a file inside the build directory", fix)
		return "", false
	}
	return clean, true
}

// entryName gives the name of the entry that describes the same file at the same
// offset, as ESP-IDF writes beside flash_files.
func entryName(root *node, off uint32, file string) string {
	for i, k := range root.keys {
		v := root.vals[i]
		o, f := v.get("offset"), v.get("file")
		if slices.Contains(reservedKeys, k) || o == nil || f == nil || f.text != file || badText(k, maxName) != "" {
			continue
		}
		if at, ok := parseOffset(o.text); ok && at == off {
			return k
		}
	}
	return path.Base(file)
}

// parseOffset reads the offsets of flasher_args.json: 0x10000, or decimal.
func parseOffset(s string) (uint32, bool) {
	var v uint64
	var err error
	switch {
	case hexRE.MatchString(s):
		v, err = strconv.ParseUint(s[2:], 16, 32)
	case decimalRE.MatchString(s):
		v, err = strconv.ParseUint(s, 10, 32)
	default:
		return 0, false
	}
	return uint32(v), err == nil
}
