package espsim

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Faults are what goes wrong with a simulated chip and its line, on request. The
// zero value is a chip without faults. Counts start at 1 with the chip's making
// and go on over resets; 0 is never. See the package comment for the notation.
type Faults struct {
	Seed   int64
	Noise  float64 // probability that a byte is damaged, either way
	Drop   float64 // probability that a byte is lost, either way
	Window Window  // when Noise and Drop act

	Refuse []Refusal
	Lose   []Loss

	PowerAtWrite  int // power fails at this register write
	PowerAtData   int // power fails at this FLASH_DATA or FLASH_DEFL_DATA
	UnplugAtByte  int // the port goes at this byte from the host
	UnplugAtWrite int // the port goes after this register write

	Weak         float64 // probability that a fuse is not taken by the first burn
	Stuck        []Bit   // fuses that are never taken
	IgnoreResets int     // how many resets over the lines do nothing
}

// Window says when the line is bad.
type Window string

// The windows.
const (
	WindowAll   Window = ""      // always
	WindowFlash Window = "flash" // from an accepted FLASH_* or MD5 command to the next other accepted one
	WindowBurn  Window = "burn"  // from the first write to the eFuse controller to the next command that is no register access
)

// Refusal makes the loader refuse a command.
type Refusal struct {
	Op     byte
	Nth    int     // which one of its kind; 0 is each
	Status [2]byte // 01 05 comes under the last accepted opcode, as the ROM's own refusals do
}

// Loss swallows the reply to a command.
type Loss struct {
	Op  byte
	Nth int // 0 is each
}

// Bit is one fuse: a data bit of a block.
type Bit struct{ Block, Bit int }

// refused is the status of a Refusal that names none.
var refused = [2]byte{1, errRefused}

func (f Faults) refuses(op byte, nth int) ([2]byte, bool) {
	for _, r := range f.Refuse {
		if r.Op == op && (r.Nth == 0 || r.Nth == nth) {
			return r.Status, true
		}
	}
	return [2]byte{}, false
}

func (f Faults) loses(op byte, nth int) bool {
	return slices.ContainsFunc(f.Lose, func(l Loss) bool { return l.Op == op && (l.Nth == 0 || l.Nth == nth) })
}

// String writes the faults so that ParseFaults reads the same again.
func (f Faults) String() string {
	var out []string
	add := func(key, format string, args ...any) { out = append(out, key+"="+fmt.Sprintf(format, args...)) }
	count := func(key string, n int) {
		if n != 0 {
			add(key, "%d", n)
		}
	}
	chance := func(key string, p float64) {
		if p != 0 {
			add(key, "%s", strconv.FormatFloat(p, 'g', -1, 64))
		}
	}
	chance("noise", f.Noise)
	chance("drop", f.Drop)
	if f.Window != WindowAll {
		add("window", "%s", f.Window)
	}
	for _, r := range f.Refuse {
		s := opAt(r.Op, r.Nth)
		if r.Status != refused {
			s += fmt.Sprintf(":%02x%02x", r.Status[0], r.Status[1])
		}
		add("refuse", "%s", s)
	}
	for _, l := range f.Lose {
		add("lose", "%s", opAt(l.Op, l.Nth))
	}
	count("power", f.PowerAtWrite)
	count("power-data", f.PowerAtData)
	count("unplug", f.UnplugAtByte)
	count("unplug-write", f.UnplugAtWrite)
	chance("weak", f.Weak)
	for _, b := range f.Stuck {
		add("stuck", "%d.%d", b.Block, b.Bit)
	}
	count("ignore-reset", f.IgnoreResets)
	if f.Seed != 0 {
		add("seed", "%d", f.Seed)
	}
	return strings.Join(out, ",")
}

func opAt(op byte, nth int) string {
	if nth == 0 {
		return fmt.Sprintf("%02x", op)
	}
	return fmt.Sprintf("%02x@%d", op, nth)
}

// ParseFaults reads a fault specification; an empty one is no faults.
func ParseFaults(spec string) (Faults, error) {
	var f Faults
	if spec == "" {
		return f, nil
	}
	given := map[string]bool{}
	for _, item := range strings.Split(spec, ",") {
		key, value, ok := strings.Cut(item, "=")
		if !ok {
			return Faults{}, fmt.Errorf("fault %q: write it as name=value, for example noise=1e-4", item)
		}
		if given[key] && key != "refuse" && key != "lose" && key != "stuck" {
			return Faults{}, fmt.Errorf("fault %s is there twice", key)
		}
		given[key] = true
		if err := setFault(&f, key, value); err != nil {
			return Faults{}, fmt.Errorf("fault %s: %w", key, err)
		}
	}
	return f, nil
}

func setFault(f *Faults, key, value string) (err error) {
	switch key {
	case "noise":
		f.Noise, err = parseChance(value)
	case "drop":
		f.Drop, err = parseChance(value)
	case "weak":
		f.Weak, err = parseChance(value)
	case "window":
		switch w := Window(value); w {
		case WindowFlash, WindowBurn:
			f.Window = w
		default:
			return fmt.Errorf("%q is no window: known are flash, burn", value)
		}
	case "refuse":
		r := Refusal{Status: refused}
		at, st, named := strings.Cut(value, ":")
		if r.Op, r.Nth, err = parseOpAt(at); err == nil && named {
			r.Status, err = parseStatus(st)
		}
		f.Refuse = append(f.Refuse, r)
	case "lose":
		var l Loss
		l.Op, l.Nth, err = parseOpAt(value)
		f.Lose = append(f.Lose, l)
	case "power":
		f.PowerAtWrite, err = parseCount(value)
	case "power-data":
		f.PowerAtData, err = parseCount(value)
	case "unplug":
		f.UnplugAtByte, err = parseCount(value)
	case "unplug-write":
		f.UnplugAtWrite, err = parseCount(value)
	case "ignore-reset":
		f.IgnoreResets, err = parseCount(value)
	case "stuck":
		block, bit, ok := strings.Cut(value, ".")
		b, errB := strconv.ParseUint(block, 10, 8)
		i, errI := strconv.ParseUint(bit, 10, 16)
		if !ok || errB != nil || errI != nil {
			return fmt.Errorf("%q is no fuse: write block.bit, for example 4.17", value)
		}
		f.Stuck = append(f.Stuck, Bit{int(b), int(i)})
	case "seed":
		f.Seed, err = strconv.ParseInt(value, 10, 64)
		if err != nil {
			err = fmt.Errorf("%q is no whole number", value)
		}
	default:
		return fmt.Errorf("unknown: known are noise, drop, window, refuse, lose, power, power-data, " +
			"unplug, unplug-write, weak, stuck, ignore-reset, seed")
	}
	return err
}

func parseChance(s string) (float64, error) {
	p, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(p) || p < 0 || p > 1 {
		return 0, fmt.Errorf("%q is no probability: write a number from 0 to 1, for example 1e-4", s)
	}
	return p + 0, nil // never -0
}

func parseCount(s string) (int, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is no count: the first is 1", s)
	}
	return int(n), nil
}

func parseOpAt(s string) (op byte, nth int, err error) {
	hex, at, counted := strings.Cut(s, "@")
	v, err := strconv.ParseUint(strings.TrimPrefix(hex, "0x"), 16, 8)
	if err != nil {
		return 0, 0, fmt.Errorf("%q is no opcode: write it in hex, for example 03", hex)
	}
	if counted {
		if nth, err = parseCount(at); err != nil {
			return 0, 0, err
		}
	}
	return byte(v), nth, nil
}

func parseStatus(s string) ([2]byte, error) {
	v, err := strconv.ParseUint(s, 16, 16)
	if err != nil || len(s) != 4 || v>>8 == 0 {
		return [2]byte{}, fmt.Errorf("%q is no refusing status: write four hex digits, for example 0107", s)
	}
	return [2]byte{byte(v >> 8), byte(v)}, nil
}
