package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// arch is one architecture: its instructions and its registers.
type arch struct {
	file      string
	head      string // comment and constants of the file
	machine   func(*emitter) machine
	functions map[string]allocation
}

// allocation says what lies where in one function.
type allocation struct {
	frame int    // bytes of the stack
	setup string // roles that are loaded with their constants, in this order
	regs  []bank
	wipe  string // registers that held keys, to be cleared at the end
}

// bank is the registers of one role. A parameter of the function is a role too.
type bank struct{ role, regs, holds string }

// machine is what the algorithms need of a processor.
type machine interface {
	load(p param)              // a parameter into its register
	constant(role string)      // that of the role into its register
	set(counter, count string) // a number or another register into a register
	decrement(counter string)
	again(counter, label string) // counts down; back to the label if something is left
	open(s *stream)              // sets a stream's register to where it begins
	move(s *stream)              // brings the offset of a stream into its register
	get(s *stream, last bool, regs ...string)
	put(s *stream, last bool, regs ...string)
	storesPairs() bool // two registers with one instruction
	clear(reg string)

	rcon(value int) // the round constant
	doubleRcon()
	// nextKey is a step of the key schedule: k becomes the round key after prev. With
	// rot it is the step with RotWord and the round constant, otherwise the one
	// between them that AES-256 has. tmp and sub are overwritten.
	nextKey(k, prev, tmp, sub string, rot bool)
	inverseKey(k, to string) // InvMixColumns
	toLast(s *stream)        // moves a stream of round keys by the number of rounds

	// whitensFirst says where the first AddRoundKey is: before the rounds, with the
	// instructions of a round adding their key at the end, or in the first round.
	whitensFirst() bool
	addKey(l lane)
	round(l lane)
	final(l lane) // the last round

	reverse(regs ...string) // the bytes of blocks
	// nextTweak puts the flash address, as a block, where the next tweak will be.
	nextTweak()
	nextAddress()
	// xtsIn loads the blocks of a unit with their bytes in reverse, and adds their
	// tweaks, of which the first lies in next; it gets the first key of data if the
	// machine whitens first. xtsOut adds the tweaks again and stores.
	xtsIn(src, data *stream)
	xtsOut(dst *stream)
}

// code is a function while it is made.
type code struct {
	*emitter
	machine
}

// emitter writes a function's text.
type emitter struct {
	text  bytes.Buffer
	roles map[string][]string
	alloc allocation
}

// begin writes the comment, with what each register holds, and the head.
func (e *emitter) begin(d declaration) {
	fmt.Fprintf(&e.text, "\n// %s\n//\n", d.text)
	width := 0
	for _, b := range e.alloc.regs {
		width = max(width, len(brief(strings.Fields(b.regs))))
	}
	for _, b := range e.alloc.regs {
		if e.roles[b.role] != nil {
			panic(d.name + ": " + b.role + " has registers already")
		}
		e.roles[b.role] = strings.Fields(b.regs)
		fmt.Fprintf(&e.text, "//\t%-*s  %s\n", width, brief(e.roles[b.role]), b.holds)
	}
	fmt.Fprintf(&e.text, "TEXT ·%s(SB), NOSPLIT, $%d-%d\n", d.name, e.alloc.frame, d.size)
}

// brief names registers in a comment, those in a row by the first and the last.
func brief(regs []string) string {
	var out []string
	for i := 0; i < len(regs); {
		n := 1
		for i+n < len(regs) && number(regs[i+n]) == number(regs[i])+n {
			n++
		}
		if n > 2 {
			out = append(out, regs[i]+"-"+regs[i+n-1])
		} else {
			out = append(out, regs[i:i+n]...)
		}
		i += n
	}
	return strings.Join(out, " ")
}

// number is the N of the register XN, VN or RN.
func number(reg string) int {
	n, err := strconv.Atoi(reg[1:])
	if err != nil {
		return -1
	}
	return n
}

// op writes an instruction.
func (e *emitter) op(name string, operands ...string) {
	line := fmt.Sprintf("\t%-10s %s", name, strings.Join(operands, ", "))
	e.text.WriteString(strings.TrimRight(line, " ") + "\n")
}

// say writes a comment, in a paragraph of its own.
func (e *emitter) say(text string) {
	if !bytes.HasSuffix(e.text.Bytes(), []byte(":\n")) {
		e.text.WriteByte('\n')
	}
	fmt.Fprintf(&e.text, "\t// %s\n", text)
}

func (e *emitter) label(name string) { fmt.Fprintf(&e.text, "\n%s:\n", name) }

// regs are the registers of a role.
func (e *emitter) regs(role string) []string {
	if len(e.roles[role]) == 0 {
		panic("no register for " + role)
	}
	return e.roles[role]
}

// reg is the only register of a role.
func (e *emitter) reg(role string) string {
	if r := e.regs(role); len(r) == 1 {
		return r[0]
	}
	panic("more than one register for " + role)
}

func imm(n int) string { return fmt.Sprintf("$%d", n) }

// mem is an address.
func mem(off int, reg string) string {
	if off == 0 {
		return "(" + reg + ")"
	}
	return fmt.Sprintf("%d(%s)", off, reg)
}

// stream is memory that is gone through in blocks of 16 bytes.
type stream struct {
	reg    string
	begins string // register that keeps where it begins, until it is opened
	off    int    // of the place, from what the register holds
	down   bool
	// both is set where one function goes down through what another goes up: arm64
	// then moves the register by an instruction, as no load moves it down.
	both bool
}

func (c *code) stream(role string) *stream { return &stream{reg: c.reg(role)} }

// within is a stream through what the register of begins points to, and goes on
// pointing to.
func (c *code) within(begins, role string) *stream {
	return &stream{reg: c.reg(role), begins: c.reg(begins)}
}

// at is the register that the stream's offset counts from.
func (s *stream) at() string {
	if s.begins != "" {
		return s.begins
	}
	return s.reg
}

// advance goes on by so many blocks.
func (s *stream) advance(blocks int) {
	if s.down {
		blocks = -blocks
	}
	s.off += 16 * blocks
}

// loop repeats the body, count times or as often as the counter says. A stream that
// has gone ahead already when the loop begins moves its register at the head, the
// others move theirs at the end.
func (c *code) loop(label, counter, count string, through []*stream, body func()) {
	ahead := map[*stream]int{}
	for _, s := range through {
		if s.off != 0 && (s.off < 0) == s.down {
			ahead[s] = s.off
		} else {
			c.move(s)
		}
	}
	if count != "" {
		c.set(counter, count)
	}
	c.label(label)
	for _, s := range through {
		c.move(s)
	}
	body()
	for _, s := range through {
		if off, ok := ahead[s]; !ok {
			c.move(s)
		} else if s.off != off {
			panic(fmt.Sprintf("loop %s: %s is off by %d at the head, by %d at the end", label, s.reg, off, s.off))
		}
	}
	c.again(counter, label)
}
