package main

import (
	"fmt"
	"strings"
)

var arm64Arch = arch{
	file:      "aes_arm64.s",
	head:      arm64Head,
	machine:   func(e *emitter) machine { return arm64{e} },
	functions: arm64Functions(),
}

const arm64Head = `// An arm64 AES instruction adds the round key first: AESE is AddRoundKey, SubBytes
// and ShiftRows, AESD is AddRoundKey and their inverses; AESMC and AESIMC mix the
// columns. The last round key is left to an exclusive or. Pairs of AESE and AESMC
// stand together: many cores run them as one.
//
// AESE on four equal words with a round key of zero is SubWord, because ShiftRows
// then moves nothing.

// Bytes of a block in reverse.
DATA reverse16<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse16<>+8(SB)/8, $0x0001020304050607
GLOBL reverse16<>(SB), RODATA|NOPTR, $16

// RotWord of the last word, in all four words.
DATA rotWord<>+0(SB)/8, $0x0c0f0e0d0c0f0e0d
DATA rotWord<>+8(SB)/8, $0x0c0f0e0d0c0f0e0d
GLOBL rotWord<>(SB), RODATA|NOPTR, $16
`

func arm64Functions() map[string]allocation {
	xts := allocation{
		setup: "reverse alpha",
		wipe:  "V24 V25",
		regs: []bank{
			{"rounds", "R0", "rounds before the last"},
			{"data", "R1", "round keys for the blocks"},
			{"tweak", "R2", "round keys for the tweaks"},
			{"dst", "R3", "destination of this unit"},
			{"src", "R4", "source of this unit"},
			{"units", "R5", "units left"},
			{"addr", "R6", "flash address of the unit whose tweak is made"},
			{"symbol", "R7", "address of a constant, at the beginning"},
			{"dataAt", "R7", "next round key in R1's"},
			{"tweakAt", "R8", "next round key in R2's"},
			{"count", "R9", "rounds left"},
			{"t", "R10 R11", "low and high half of a tweak"},
			{"carry", "R12", "what the carry out of a tweak adds"},
			{"alpha", "R13", "0x87"},
			{"block", "V0 V1 V2 V3 V4 V5 V6 V7", "the blocks, by flash address: XTS counts them from V7 down"},
			{"next", "V8", "first tweak of the next unit"},
			{"tweaks", "V16 V17 V18 V19 V20 V21 V22 V23", "tweaks of the blocks"},
			{"dataKey", "V24", "round key of the blocks"},
			{"tweakKey", "V25", "round key of the tweak"},
			{"reverse", "V26", "reverse16"},
		},
	}
	esp32 := allocation{
		setup: "reverse rot zero",
		wipe:  "V8 V9 V10 V11 V12 V16 V17 V18 V19 V20 V21 V22 V23 V24 V25 V27",
		regs: []bank{
			{"keys", "R0", "keys of this group"},
			{"schedules", "R1", "round keys of the four units, 64 bytes per round"},
			{"dst", "R2", "destination of this group"},
			{"src", "R3", "source of this group"},
			{"groups", "R4", "groups left"},
			{"symbol", "R5", "address of a constant, at the beginning"},
			{"at", "R5", "this round in the schedules"},
			{"value", "R6", "round constant, on its way to V14"},
			{"count", "R6", "rounds left"},
			{"block", "V0 V1 V2 V3 V4 V5 V6 V7", "the blocks, two per unit"},
			{"round", "V8 V9 V10 V11", "a round's key of each unit"},
			{"tmp", "V8 V9 V10 V11 V12 V24 V25 V27", "temporary"},
			{"rot", "V13", "rotWord"},
			{"rcon", "V14", "round constant"},
			{"zero", "V15", "zero"},
			{"first", "V16 V17 V18 V19", "even round keys of the units"},
			{"second", "V20 V21 V22 V23", "odd round keys"},
			{"reverse", "V26", "reverse16"},
		},
	}
	return map[string]allocation{
		"expand128": {
			setup: "rot zero rcon",
			wipe:  "V0 V1 V2",
			regs: []bank{
				{"key", "R0", "the key"},
				{"enc", "R1", "where round keys go"},
				{"symbol", "R2", "address of a constant"},
				{"value", "R2", "round constant, on its way to V14"},
				{"count", "R3", "round keys left"},
				{"k", "V0", "round key"},
				{"tmp", "V1", "temporary"},
				{"sub", "V2", "what SubWord gives"},
				{"rot", "V13", "rotWord"},
				{"rcon", "V14", "round constant"},
				{"zero", "V15", "zero"},
			},
		},
		"expand256": {
			setup: "rot zero rcon",
			wipe:  "V0 V1 V2 V3",
			regs: []bank{
				{"key", "R0", "the key"},
				{"enc", "R1", "where round keys go"},
				{"symbol", "R2", "address of a constant"},
				{"value", "R2", "round constant, on its way to V14"},
				{"count", "R3", "pairs of round keys left"},
				{"k", "V0 V1", "even and odd round key"},
				{"tmp", "V2", "temporary"},
				{"sub", "V3", "what SubWord gives"},
				{"rot", "V13", "rotWord"},
				{"rcon", "V14", "round constant"},
				{"zero", "V15", "zero"},
			},
		},
		"invertKeys": {
			wipe: "V0",
			regs: []bank{
				{"rounds", "R0", "round keys left"},
				{"dec", "R1", "where round keys go"},
				{"enc", "R2", "round keys, from the last one down"},
				{"k", "V0", "round key"},
			},
		},
		"xtsEncrypt":   xts,
		"xtsDecrypt":   xts,
		"esp32Encrypt": esp32,
		"esp32Decrypt": esp32,
	}
}

// arm64 has AES instructions that add their round key first, and loads and stores
// that move their address on.
type arm64 struct{ *emitter }

// v writes an instruction on whole registers of 16 bytes.
func (a arm64) v(name string, regs ...string) {
	operands := make([]string, len(regs))
	for i, r := range regs {
		operands[i] = r + ".B16"
	}
	a.op(name, operands...)
}

// list is the registers of a load, a store or a table.
func list(regs ...string) string { return "[" + strings.Join(regs, ".B16, ") + ".B16]" }

func (a arm64) load(p param) {
	mov := "MOVD"
	if p.size == 4 {
		mov = "MOVWU"
	}
	a.op(mov, fmt.Sprintf("%s+%d(FP)", p.name, p.off), a.reg(p.name))
}

func (a arm64) constant(role string) {
	switch role {
	case "zero":
		a.clear(a.reg(role))
	case "rcon":
		a.rcon(1)
	case "alpha":
		a.set(a.reg(role), "$0x87")
	default:
		symbol := map[string]string{"reverse": "reverse16", "rot": "rotWord"}[role]
		a.op("MOVD", "$"+symbol+"<>(SB)", a.reg("symbol"))
		a.op("VLD1", mem(0, a.reg("symbol")), list(a.reg(role)))
	}
}

func (a arm64) set(counter, count string) { a.op("MOVD", count, counter) }
func (a arm64) decrement(counter string)  { a.op("SUB", "$1", counter) }

func (a arm64) again(counter, label string) {
	a.decrement(counter)
	a.op("CBNZ", counter, label)
}

func (a arm64) open(s *stream) {
	a.op("MOVD", s.begins, s.reg)
	s.begins = ""
}

func (a arm64) move(s *stream) {
	switch {
	case s.off > 0:
		a.op("ADD", imm(s.off), s.reg)
	case s.off < 0:
		a.op("SUB", imm(-s.off), s.reg)
	}
	s.off = 0
}

// get moves the register with the load if it can, otherwise before the next one.
func (a arm64) get(s *stream, last bool, regs ...string) {
	for len(regs) > 0 {
		a.move(s)
		n := min(len(regs), 4)
		switch {
		case last:
			a.op("VLD1", mem(0, s.at()), list(regs[:n]...))
		case s.down || s.both:
			a.op("VLD1", mem(0, s.at()), list(regs[:n]...))
			s.advance(n)
		default:
			a.op("VLD1.P", mem(16*n, s.at()), list(regs[:n]...))
		}
		regs = regs[n:]
	}
}

func (a arm64) put(s *stream, last bool, regs ...string) {
	for len(regs) > 0 {
		n := min(len(regs), 4)
		if last {
			a.op("VST1", list(regs[:n]...), mem(0, s.at()))
		} else {
			a.op("VST1.P", list(regs[:n]...), mem(16*n, s.at()))
		}
		regs = regs[n:]
	}
}

func (a arm64) storesPairs() bool { return true }

func (a arm64) clear(reg string) { a.v("VEOR", reg, reg, reg) }

func (a arm64) rcon(value int) {
	a.op("MOVD", fmt.Sprintf("$%#x", value), a.reg("value"))
	a.op("VDUP", a.reg("value"), a.reg("rcon")+".S4")
}

func (a arm64) doubleRcon() {
	r := a.reg("rcon") + ".S4"
	a.op("VSHL", "$1", r, r)
}

func (a arm64) nextKey(k, prev, tmp, sub string, rot bool) {
	zero := a.reg("zero")
	if rot {
		a.op("VTBL", a.reg("rot")+".B16", list(prev), sub+".B16")
	} else {
		a.op("VDUP", prev+".S[3]", sub+".S4")
	}
	a.v("AESE", zero, sub)
	for _, shift := range []int{4, 8} { // the words' running XOR
		a.op("VEXT", imm(16-shift), k+".B16", zero+".B16", tmp+".B16")
		a.v("VEOR", tmp, k, k)
	}
	if rot {
		a.v("VEOR", a.reg("rcon"), sub, sub)
	}
	a.v("VEOR", sub, k, k)
}

func (a arm64) inverseKey(k, to string) { a.v("AESIMC", k, to) }

func (a arm64) toLast(s *stream) { a.op("ADD", a.reg("rounds")+"<<4", s.reg, s.reg) }

func (a arm64) whitensFirst() bool { return false }

func (a arm64) addKey(l lane) { a.v("VEOR", l.key, l.block, l.block) }

func (a arm64) round(l lane) {
	a.final(l)
	a.v(map[direction]string{forward: "AESMC", inverse: "AESIMC"}[l.dir], l.block, l.block)
}

func (a arm64) final(l lane) {
	a.v(map[direction]string{forward: "AESE", inverse: "AESD"}[l.dir], l.key, l.block)
}

func (a arm64) reverse(regs ...string) {
	for _, r := range regs {
		a.op("VTBL", a.reg("reverse")+".B16", list(r), r+".B16")
	}
}

func (a arm64) nextTweak() {
	next := a.reg("next")
	a.clear(next)
	a.op("VMOV", a.reg("addr"), next+".D[0]")
}

func (a arm64) nextAddress() { a.op("ADDW", "$128", a.reg("addr"), a.reg("addr")) }

func (a arm64) xtsIn(src, _ *stream) {
	block, tweaks, t, carry := a.regs("block"), a.regs("tweaks"), a.regs("t"), a.reg("carry")
	next, last := a.reg("next"), len(tweaks)-1
	a.op("VMOV", next+".D[0]", t[0])
	a.op("VMOV", next+".D[1]", t[1])
	a.v("VMOV", next, tweaks[last])
	a.get(src, false, block...)
	for i := last - 1; i >= 0; i-- {
		a.say(fmt.Sprintf("The tweak of the block at %d: times α.", 16*i))
		a.op("ASR", "$63", t[1], carry)
		a.op("AND", a.reg("alpha"), carry, carry)
		a.op("EXTR", "$63", t[0], t[1], t[1])
		a.op("EOR", t[0]+"<<1", carry, t[0])
		a.op("VMOV", t[0], tweaks[i]+".D[0]")
		a.op("VMOV", t[1], tweaks[i]+".D[1]")
	}
	a.say("The tweaks.")
	a.reverse(block...)
	a.addTweaks()
}

func (a arm64) addTweaks() {
	tweaks := a.regs("tweaks")
	for i, b := range a.regs("block") {
		a.v("VEOR", tweaks[i], b, b)
	}
}

func (a arm64) xtsOut(dst *stream) {
	block := a.regs("block")
	a.say("The tweaks again, and out.")
	a.addTweaks()
	a.reverse(block...)
	a.put(dst, false, block...)
}
