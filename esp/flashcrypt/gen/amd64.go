package main

import "fmt"

var amd64Arch = arch{
	file:      "aes_amd64.s",
	head:      amd64Head,
	machine:   func(e *emitter) machine { return amd64{e} },
	functions: amd64Functions(),
}

const amd64Head = `// AESENCLAST on four equal words is SubWord, because ShiftRows then moves nothing; the
// round constant, or zero, is its round key.

// Bytes of a block in reverse.
DATA reverse16<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse16<>+8(SB)/8, $0x0001020304050607
GLOBL reverse16<>(SB), RODATA|NOPTR, $16

// What a carry out of the low and of the high half of a tweak adds.
DATA alpha<>+0(SB)/8, $0x0000000000000087
DATA alpha<>+8(SB)/8, $0x0000000000000001
GLOBL alpha<>(SB), RODATA|NOPTR, $16

// RotWord of the last word, in all four words.
DATA rotWord<>+0(SB)/8, $0x0c0f0e0d0c0f0e0d
DATA rotWord<>+8(SB)/8, $0x0c0f0e0d0c0f0e0d
GLOBL rotWord<>(SB), RODATA|NOPTR, $16

// The round constant 1 in all four words.
DATA rcon<>+0(SB)/8, $0x0000000100000001
DATA rcon<>+8(SB)/8, $0x0000000100000001
GLOBL rcon<>(SB), RODATA|NOPTR, $16

// The round constant 0x1b in all four words.
DATA rcon1b<>+0(SB)/8, $0x0000001b0000001b
DATA rcon1b<>+8(SB)/8, $0x0000001b0000001b
GLOBL rcon1b<>(SB), RODATA|NOPTR, $16
`

func amd64Functions() map[string]allocation {
	xts := allocation{
		frame: 128,
		setup: "reverse alpha",
		wipe:  "X14 X15",
		regs: []bank{
			{"rounds", "R8", "rounds before the last"},
			{"data", "R9", "round keys for the blocks"},
			{"tweak", "R10", "round keys for the tweaks"},
			{"dst", "DI", "destination of this unit"},
			{"src", "SI", "source of this unit"},
			{"units", "DX", "units left"},
			{"addr", "R11", "flash address of the unit whose tweak is made"},
			{"dataAt", "AX", "next round key in R9's"},
			{"tweakAt", "BX", "next round key in R10's"},
			{"count", "CX", "rounds left"},
			{"block", "X0 X1 X2 X3 X4 X5 X6 X7", "the blocks, by flash address: XTS counts them from X7 down"},
			{"next", "X8", "first tweak of the next unit"},
			{"t", "X9", "tweak of a block; those of all blocks are kept on the stack"},
			{"tmp", "X10", "temporary"},
			{"alpha", "X12", "alpha"},
			{"reverse", "X13", "reverse16"},
			{"dataKey", "X14", "round key of the blocks"},
			{"tweakKey", "X15", "round key of the tweak"},
		},
	}
	esp32 := allocation{
		setup: "reverse rot zero",
		wipe:  "X8 X9 X10 X11",
		regs: []bank{
			{"keys", "AX", "keys of this group"},
			{"schedules", "R8", "round keys of the four units, 64 bytes per round"},
			{"dst", "DI", "destination of this group"},
			{"src", "SI", "source of this group"},
			{"groups", "DX", "groups left"},
			{"at", "BX", "this round in the schedules"},
			{"count", "CX", "rounds left"},
			{"first", "X0 X1 X2 X3", "even round keys of the units, while they are made"},
			{"second", "X4 X5 X6 X7", "odd round keys"},
			{"block", "X0 X1 X2 X3 X4 X5 X6 X7", "the blocks, two per unit"},
			{"tmp", "X8 X9 X10 X11", "temporary"},
			{"round", "X8 X9 X10 X11", "a round's key of each unit"},
			{"reverse", "X12", "reverse16"},
			{"rot", "X13", "rotWord"},
			{"rcon", "X14", "round constant"},
			{"zero", "X15", "zero"},
		},
	}
	return map[string]allocation{
		"expand128": {
			setup: "rot rcon",
			wipe:  "X0 X1 X2",
			regs: []bank{
				{"key", "AX", "the key"},
				{"enc", "BX", "where round keys go"},
				{"count", "CX", "round keys left"},
				{"k", "X0", "round key"},
				{"tmp", "X1", "temporary"},
				{"sub", "X2", "what SubWord gives"},
				{"rot", "X13", "rotWord"},
				{"rcon", "X14", "round constant"},
			},
		},
		"expand256": {
			setup: "rot rcon zero",
			wipe:  "X0 X1 X2 X3",
			regs: []bank{
				{"key", "AX", "the key"},
				{"enc", "BX", "where round keys go"},
				{"count", "CX", "pairs of round keys left"},
				{"k", "X0 X1", "even and odd round key"},
				{"tmp", "X2", "temporary"},
				{"sub", "X3", "what SubWord gives"},
				{"rot", "X13", "rotWord"},
				{"rcon", "X14", "round constant"},
				{"zero", "X15", "zero"},
			},
		},
		"invertKeys": {
			wipe: "X0",
			regs: []bank{
				{"rounds", "CX", "round keys left"},
				{"dec", "DI", "where round keys go"},
				{"enc", "SI", "round keys, from the last one down"},
				{"offset", "AX", "offset of the last one"},
				{"k", "X0", "round key"},
			},
		},
		"xtsEncrypt":   xts,
		"xtsDecrypt":   xts,
		"esp32Encrypt": esp32,
		"esp32Decrypt": esp32,
	}
}

// amd64 has AES instructions that add their round key at the end.
type amd64 struct{ *emitter }

func (a amd64) load(p param) {
	mov := "MOVQ"
	if p.size == 4 {
		mov = "MOVL"
	}
	a.op(mov, fmt.Sprintf("%s+%d(FP)", p.name, p.off), a.reg(p.name))
}

func (a amd64) constant(role string) {
	switch role {
	case "zero":
		a.clear(a.reg(role))
	case "rcon":
		a.rcon(1)
	default:
		symbol := map[string]string{"reverse": "reverse16", "rot": "rotWord", "alpha": "alpha"}[role]
		a.op("MOVOU", symbol+"<>(SB)", a.reg(role))
	}
}

func (a amd64) set(counter, count string) { a.op("MOVQ", count, counter) }
func (a amd64) decrement(counter string)  { a.op("DECQ", counter) }

func (a amd64) again(counter, label string) {
	a.decrement(counter)
	a.op("JNZ", label)
}

func (a amd64) open(s *stream) {
	if s.off == 0 {
		a.op("MOVQ", s.begins, s.reg)
	} else {
		a.op("LEAQ", mem(s.off, s.begins), s.reg)
	}
	s.begins, s.off = "", 0
}

func (a amd64) move(s *stream) {
	switch {
	case s.off > 0:
		a.op("ADDQ", imm(s.off), s.reg)
	case s.off < 0:
		a.op("SUBQ", imm(-s.off), s.reg)
	}
	s.off = 0
}

func (a amd64) get(s *stream, last bool, regs ...string) {
	for i, r := range regs {
		a.op("MOVOU", mem(s.off+16*i, s.at()), r)
	}
	if !last {
		s.advance(len(regs))
	}
}

func (a amd64) put(s *stream, last bool, regs ...string) {
	for i, r := range regs {
		a.op("MOVOU", r, mem(s.off+16*i, s.at()))
	}
	if !last {
		s.advance(len(regs))
	}
}

func (a amd64) storesPairs() bool { return false }

func (a amd64) clear(reg string) { a.op("PXOR", reg, reg) }

func (a amd64) rcon(value int) {
	symbol := map[int]string{1: "rcon<>(SB)", 0x1b: "rcon1b<>(SB)"}[value]
	a.op("MOVOU", symbol, a.reg("rcon"))
}

func (a amd64) doubleRcon() { a.op("PSLLL", "$1", a.reg("rcon")) }

func (a amd64) nextKey(k, prev, tmp, sub string, rot bool) {
	if rot {
		a.op("MOVO", prev, sub)
		a.op("PSHUFB", a.reg("rot"), sub)
		a.op("AESENCLAST", a.reg("rcon"), sub)
	} else {
		a.op("PSHUFD", "$0xff", prev, sub)
		a.op("AESENCLAST", a.reg("zero"), sub)
	}
	for _, shift := range []int{4, 8} { // the words' running XOR
		a.op("MOVO", k, tmp)
		a.op("PSLLDQ", imm(shift), tmp)
		a.op("PXOR", tmp, k)
	}
	a.op("PXOR", sub, k)
}

func (a amd64) inverseKey(k, to string) { a.op("AESIMC", k, to) }

func (a amd64) toLast(s *stream) {
	offset := a.reg("offset")
	a.op("MOVQ", a.reg("rounds"), offset)
	a.op("SHLQ", "$4", offset)
	a.op("ADDQ", offset, s.reg)
}

func (a amd64) whitensFirst() bool { return true }

func (a amd64) addKey(l lane) { a.op("PXOR", l.key, l.block) }

func (a amd64) round(l lane) {
	a.op(map[direction]string{forward: "AESENC", inverse: "AESDEC"}[l.dir], l.key, l.block)
}

func (a amd64) final(l lane) {
	a.op(map[direction]string{forward: "AESENCLAST", inverse: "AESDECLAST"}[l.dir], l.key, l.block)
}

func (a amd64) reverse(regs ...string) {
	for _, r := range regs {
		a.op("PSHUFB", a.reg("reverse"), r)
	}
}

func (a amd64) nextTweak()   { a.op("MOVQ", a.reg("addr"), a.reg("next")) }
func (a amd64) nextAddress() { a.op("ADDL", "$128", a.reg("addr")) }

func (a amd64) xtsIn(src, data *stream) {
	block, t, tmp := a.regs("block"), a.reg("t"), a.reg("tmp")
	a.op("MOVO", a.reg("next"), t)
	a.get(data, false, a.reg("dataKey"))
	for i := len(block) - 1; i >= 0; i-- {
		a.say(fmt.Sprintf("The block at %d, and its tweak.", 16*i))
		a.op("MOVOU", mem(16*i, src.reg), block[i])
		a.reverse(block[i])
		a.op("PXOR", t, block[i])
		a.op("MOVOU", t, mem(16*i, "SP"))
		if i > 0 {
			a.say("The next tweak: times α.")
			a.op("PSHUFD", "$0x13", t, tmp)
			a.op("PSRAL", "$31", tmp)
			a.op("PAND", a.reg("alpha"), tmp)
			a.op("PADDQ", t, t)
			a.op("PXOR", tmp, t)
		}
	}
	src.advance(len(block))
}

func (a amd64) xtsOut(dst *stream) {
	block, tmp := a.regs("block"), a.reg("tmp")
	a.say("The tweaks again, and out.")
	for i := len(block) - 1; i >= 0; i-- {
		a.op("MOVOU", mem(16*i, "SP"), tmp)
		a.op("PXOR", tmp, block[i])
		a.reverse(block[i])
		a.op("MOVOU", block[i], mem(16*i, dst.reg))
	}
	dst.advance(len(block))
}
