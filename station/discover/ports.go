package discover

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/provisiond/provisiond/internal/conf"
)

// Start says what starts a unit in a slot.
type Start string

// The ways to start.
const (
	StartPlug   Start = "plug"
	StartScan   Start = "scan"
	StartButton Start = "button"
)

var starts = []Start{StartPlug, StartScan, StartButton}

// Slot is one entry of the allow-list.
type Slot struct {
	Name  string  // of the slot: A1
	Port  Binding // where it is
	Baud  int     // highest rate that the line carries; 0 leaves it to the recipe
	Start Start   // "" leaves it to the station's configuration
	// ResetCommand is the program that resets the board where the port has no
	// lines (socket://); see the simulator in docs/cli.md for how it is called.
	ResetCommand string

	File string // where it was read
	Line int
}

// Limits of the allow-list.
const (
	maxSlots    = 1024
	maxDropIn   = 64 << 10
	minSlotBaud = 9600
	maxSlotBaud = 4_000_000
	maxProgram  = 4096
)

var slotNameRE = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9_-]{0,30}[A-Za-z0-9])?$`)

// Error is one thing that is wrong in the allow-list.
type Error = conf.Error

// LoadPorts reads the allow-list, dir/*.yaml in the order of their names. A file
// holds one slot per YAML document:
//
//	slot: A1                                          # letters, digits, - and _
//	port: pci-0000:00:14.0-usb-0:1.2:1.0-port0        # or usb:1-1.2, socket://…, rfc2217://…, sim://…
//	baud: 921600                                      # optional: the highest rate of this line
//	start: plug                                       # optional: plug, scan or button
//	reset_command: /usr/local/bin/reset-a1            # optional: for ports without DTR and RTS
//	---
//	slot: A2
//	…
//
// No later one may name a slot or a port again. Everything that is wrong is in
// the error, each as an [*Error]. now may be nil; it lets the error for
// /dev/ttyUSB0 say what to write.
func LoadPorts(dir string, now []Port) ([]Slot, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, &Error{File: dir, Problem: "the allow-list cannot be read: " + cause(err), Fix: "make the directory, with a file per slot; see docs/ports.md"}
	}
	l := loader{now: now}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch ext := filepath.Ext(e.Name()); {
		case strings.HasPrefix(e.Name(), "."), e.IsDir():
		case ext == ".yml":
			l.add(name, 0, "", "is not read: only *.yaml is", "rename it")
		case ext == ".yaml":
			l.file(name)
		}
	}
	return l.result()
}

// ParsePorts reads one file of the allow-list.
func ParsePorts(name string, b []byte, now []Port) ([]Slot, error) {
	l := loader{now: now}
	l.parse(name, b)
	return l.result()
}

func cause(err error) string {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

type loader struct {
	now   []Port
	slots []Slot
	errs  []error
}

func (l *loader) add(file string, line int, field, problem, fix string) {
	l.errs = append(l.errs, &Error{File: file, Line: line, Path: field, Problem: problem, Fix: fix})
}

func (l *loader) result() ([]Slot, error) {
	if len(l.errs) > 0 {
		return nil, errors.Join(l.errs...)
	}
	return l.slots, nil
}

func (l *loader) file(name string) {
	f, err := os.Open(name)
	if err != nil {
		l.add(name, 0, "", "cannot be read: "+cause(err), "")
		return
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxDropIn+1))
	if err != nil {
		l.add(name, 0, "", "cannot be read: "+cause(err), "")
		return
	}
	l.parse(name, b)
}

func (l *loader) parse(name string, b []byte) {
	switch {
	case len(b) > maxDropIn:
		l.add(name, 0, "", fmt.Sprintf("is longer than %d bytes", maxDropIn), "spread the slots over several files")
		return
	case !utf8.Valid(b):
		l.add(name, 0, "", "holds bytes that are not UTF-8", "save the file as UTF-8")
		return
	}
	found := false
	for dec := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			line, words := conf.Place(err)
			l.add(name, line, "", "is not YAML: "+words, "write lines such as slot: A1")
			return
		}
		found = true
		if len(doc.Content) == 1 {
			l.slot(name, doc.Content[0])
		}
	}
	if !found {
		l.add(name, 0, "", "holds no slot", "write slot: and port:, or remove the file")
	}
}

var slotKeys = []string{"slot", "port", "baud", "start", "reset_command"}

// slot reads one document.
func (l *loader) slot(file string, n *yaml.Node) {
	before := len(l.errs)
	if n.Kind != yaml.MappingNode {
		l.add(file, n.Line, "", "is no list of keys and values", "write slot: A1 and, on the next line, port: with its port")
		return
	}
	s := Slot{File: file, Line: n.Line}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch first, twice := lines[k.Value]; {
		case k.Kind != yaml.ScalarNode || !slices.Contains(slotKeys, k.Value):
			l.add(file, k.Line, quote(k.Value), "is not a key of a slot", "there are "+strings.Join(slotKeys, ", "))
			continue
		case twice:
			l.add(file, k.Line, k.Value, fmt.Sprintf("is on line %d too", first), "keep one of them")
			continue
		}
		lines[k.Value] = k.Line
		switch {
		case v.Kind != yaml.ScalarNode || v.Tag == "!!null" || v.Anchor != "" || v.Style&yaml.TaggedStyle != 0:
			l.add(file, v.Line, k.Value, "needs one plain value", examples[k.Value])
		default:
			l.value(&s, k.Value, v)
		}
	}
	for _, k := range slotKeys[:2] {
		if lines[k] == 0 {
			l.add(file, n.Line, k, "is missing", examples[k])
		}
	}
	if len(l.errs) > before {
		return
	}
	if len(l.slots) == maxSlots {
		l.add(file, n.Line, "slot", fmt.Sprintf("is more than the %d slots of a station", maxSlots), "")
		return
	}
	for _, other := range l.slots {
		at := fmt.Sprintf("%s:%d", other.File, other.Line)
		if strings.EqualFold(other.Name, s.Name) {
			l.add(file, lines["slot"], "slot", fmt.Sprintf("%s is in %s already", s.Name, at), "give every slot a name of its own")
		}
		if other.Port.key() == s.Port.key() && !s.Port.manyAtOnce() {
			l.add(file, lines["port"], "port", fmt.Sprintf("%s belongs to slot %s in %s already", s.Port, other.Name, at), "one port per slot")
		}
	}
	if len(l.errs) == before {
		l.slots = append(l.slots, s)
	}
}

var examples = map[string]string{
	"slot":          "write slot: A1",
	"port":          "write port: with a name from " + byPathDir + ", usb:1-1.2, socket://host:port or sim://CHIP",
	"baud":          "write baud: 921600",
	"start":         "write plug, scan or button",
	"reset_command": "write the path of a program: reset_command: /usr/local/bin/reset-a1",
}

// value reads one key of a slot. Numbers are read from their text: YAML's own
// reading makes 83 of 0123.
func (l *loader) value(s *Slot, key string, v *yaml.Node) {
	bad := func(problem string) { l.add(s.File, v.Line, key, problem, examples[key]) }
	switch key {
	case "slot":
		s.Name = v.Value
		if !slotNameRE.MatchString(s.Name) {
			bad(quote(s.Name) + " is not a name: letters, digits, - and _, at most 32")
		}
	case "port":
		b, err := ParseBinding(v.Value)
		if err != nil {
			fix := ""
			if name, ok := Suggest(v.Value, l.now); ok {
				fix = "it is now at " + name + ": write that"
			}
			l.add(s.File, v.Line, key, err.Error(), fix)
			return
		}
		s.Port = b
	case "baud":
		n, err := strconv.Atoi(v.Value)
		if err != nil || strconv.Itoa(n) != v.Value || n < minSlotBaud || n > maxSlotBaud {
			bad(fmt.Sprintf("%s is not a rate from %d to %d", quote(v.Value), minSlotBaud, maxSlotBaud))
			return
		}
		s.Baud = n
	case "start":
		s.Start = Start(v.Value)
		if !slices.Contains(starts, s.Start) {
			bad(quote(v.Value) + " starts nothing")
		}
	case "reset_command":
		s.ResetCommand = v.Value
		if len(v.Value) > maxProgram || !filepath.IsAbs(v.Value) || strings.ContainsFunc(v.Value, func(r rune) bool { return r < ' ' }) {
			bad("is not the absolute path of a program")
		}
	}
}

func quote(s string) string {
	const most = 60
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}

// YAML gives the slot as a document of an allow-list.
func (s Slot) YAML() []byte {
	type doc struct {
		Slot         string `yaml:"slot"`
		Port         string `yaml:"port"`
		Baud         int    `yaml:"baud,omitempty"`
		Start        Start  `yaml:"start,omitempty"`
		ResetCommand string `yaml:"reset_command,omitempty"`
	}
	b, err := yaml.Marshal(doc{s.Name, s.Port.String(), s.Baud, s.Start, s.ResetCommand})
	if err != nil {
		panic("discover: texts and numbers always are YAML: " + err.Error())
	}
	return b
}

// Assignment says which slot has which port.
type Assignment struct {
	// Slots holds the ports of the slots that have one now, by the slots' names.
	Slots map[string]Seen
	// Errs says why a local slot has none: [ErrNotPresent], [ErrAmbiguous] or
	// [ErrConflict].
	Errs map[string]error
	// Skipped are the ports that belong to no slot.
	Skipped []Seen
}

// ErrConflict says that several slots are bound to one port. None gets it.
var ErrConflict = errors.New("several slots are bound to this port")

// Assign puts local slots and ports together. Slots at an address are not in it.
func Assign(slots []Slot, ports []Seen) Assignment {
	a := Assignment{Slots: map[string]Seen{}, Errs: map[string]error{}}
	plain := make([]Port, len(ports))
	byKey := make(map[string]Seen, len(ports))
	for i, s := range ports {
		plain[i], byKey[s.Key()] = s.Port, s
	}
	owners := map[string][]string{} // slots by their port's position
	named := map[string]bool{}      // belongs to some slot, if only by mistake
	for _, s := range slots {
		if !s.Port.Local() {
			continue
		}
		for _, p := range plain {
			if Match(s.Port, p) {
				named[p.Key()] = true
			}
		}
		p, err := Find(s.Port, plain)
		if err != nil {
			a.Errs[s.Name] = err
			continue
		}
		owners[p.Key()] = append(owners[p.Key()], s.Name)
	}
	for key, names := range owners {
		p := byKey[key]
		if len(names) == 1 {
			a.Slots[names[0]] = p
			continue
		}
		for _, name := range names {
			a.Errs[name] = fmt.Errorf("port %s: %w: %s; correct their files", p.Binding(), ErrConflict, strings.Join(names, ", "))
		}
	}
	for _, s := range ports {
		if !named[s.Key()] {
			a.Skipped = append(a.Skipped, s)
		}
	}
	return a
}
