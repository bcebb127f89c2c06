package main

import (
	"fmt"
	"slices"
	"strings"
)

// algorithms are the functions by their names in aes_asm.go.
var algorithms = map[string]func(*code){
	"expand128":    expand128,
	"expand256":    expand256,
	"invertKeys":   invertKeys,
	"xtsEncrypt":   func(c *code) { xts(c, forward) },
	"xtsDecrypt":   func(c *code) { xts(c, inverse) },
	"esp32Encrypt": func(c *code) { esp32(c, inverse) }, // flash encryption is AES decryption
	"esp32Decrypt": func(c *code) { esp32(c, forward) },
}

// direction is that of AES.
type direction bool

const (
	forward direction = false
	inverse direction = true
)

func (c *code) setup() {
	for _, role := range strings.Fields(c.alloc.setup) {
		c.constant(role)
	}
}

func (c *code) wipe() {
	c.say("What held keys.")
	for _, r := range strings.Fields(c.alloc.wipe) {
		c.clear(r)
	}
	c.op("RET")
}

// key is nextKey with a comment. whose is "" or the key's owner.
func (c *code) key(k, prev, tmp, sub string, rot bool, whose string) {
	step := "SubWord"
	if rot {
		step = "RotWord, SubWord and the round constant"
	}
	c.say(fmt.Sprintf("%s becomes the round key%s after %s: %s.", k, whose, prev, step))
	c.nextKey(k, prev, tmp, sub, rot)
}

// expand128 is the key schedule of AES-128 (FIPS 197, 5.2).
func expand128(c *code) {
	in, out := c.stream("key"), c.stream("enc")
	k, tmp, sub := c.reg("k"), c.reg("tmp"), c.reg("sub")
	next := func(last bool) {
		c.key(k, k, tmp, sub, true, "")
		c.put(out, last, k)
	}
	c.setup()
	c.get(in, true, k)
	c.put(out, false, k)
	c.loop("next", c.reg("count"), imm(8), []*stream{out}, func() {
		next(false)
		c.doubleRcon()
	})
	c.say("Doubled once more, the constant leaves the byte: it goes on with 0x1b.")
	c.rcon(0x1b)
	next(false)
	c.doubleRcon()
	next(true)
	c.wipe()
}

// expand256 is the key schedule of AES-256.
func expand256(c *code) {
	in, out := c.stream("key"), c.stream("enc")
	k, tmp, sub := c.regs("k"), c.reg("tmp"), c.reg("sub")
	c.setup()
	c.get(in, true, k...)
	c.put(out, false, k...)
	c.loop("next", c.reg("count"), imm(6), []*stream{out}, func() {
		c.key(k[0], k[1], tmp, sub, true, "")
		pair := k
		if !c.storesPairs() {
			c.put(out, false, k[0])
			pair = k[1:]
		}
		c.key(k[1], k[0], tmp, sub, false, "")
		c.put(out, false, pair...)
		c.doubleRcon()
	})
	c.key(k[0], k[1], tmp, sub, true, "")
	c.put(out, true, k[0])
	c.wipe()
}

// invertKeys goes through the round keys from the last to the first.
func invertKeys(c *code) {
	in, out := c.stream("enc"), c.stream("dec")
	in.down = true
	k, rounds := c.reg("k"), c.reg("rounds")
	c.toLast(in)
	c.get(in, false, k)
	c.put(out, false, k)
	c.decrement(rounds)
	c.loop("invert", rounds, "", []*stream{in, out}, func() {
		c.get(in, false, k)
		c.inverseKey(k, k)
		c.put(out, false, k)
	})
	c.say("The first and the last key stay as they are.")
	c.get(in, true, k)
	c.put(out, true, k)
	c.wipe()
}

// lane is a block on its way through AES.
type lane struct {
	block, key string // registers
	dir        direction
}

// keys is where a run of AES finds its round keys: each round gets those of regs.
type keys struct {
	*stream
	regs []string
	have bool // the first ones are in the registers already
}

// aes runs blocks through AES side by side, so that each waits in the others' time.
// lanes are in the order of a round; addKey is the order of the first AddRoundKey.
func (c *code) aes(label, counter, count string, from []keys, addKey, lanes []lane) {
	get := func(last bool) {
		for _, k := range from {
			c.get(k.stream, last, k.regs...)
		}
	}
	if c.whitensFirst() {
		for _, k := range from {
			if !k.have {
				c.get(k.stream, false, k.regs...)
			}
		}
		for _, l := range addKey {
			c.addKey(l)
		}
	}
	var through []*stream
	for _, k := range from {
		if k.begins != "" {
			c.open(k.stream)
		}
		through = append(through, k.stream)
	}
	c.loop(label, counter, count, through, func() {
		get(false)
		for _, l := range lanes {
			c.round(l)
		}
	})
	c.say("The last round.")
	get(c.whitensFirst())
	for _, l := range lanes {
		c.final(l)
	}
	if !c.whitensFirst() {
		get(true)
		for _, l := range lanes {
			c.addKey(l)
		}
	}
}

// xts does units of 128 bytes. The tweak of the next unit is made beside the blocks
// of this one, so that its latency costs nothing.
func xts(c *code, dir direction) {
	src, dst := c.stream("src"), c.stream("dst")
	dataKey, tweakKey := c.regs("dataKey"), c.regs("tweakKey")
	next := []lane{{c.reg("next"), tweakKey[0], forward}}
	var up []lane
	for _, b := range c.regs("block") {
		up = append(up, lane{b, dataKey[0], dir})
	}
	down := slices.Clone(up) // the last block of a unit has its tweak first
	slices.Reverse(down)

	c.decrement(c.reg("rounds")) // the last one is a case of its own
	c.setup()
	c.say("The tweak of the first unit.")
	c.nextTweak()
	c.aes("first", c.reg("count"), c.reg("rounds"), []keys{{stream: c.within("tweak", "tweakAt"), regs: tweakKey}}, next, next)
	c.loop("unit", c.reg("units"), "", []*stream{src, dst}, func() {
		data, tweak := c.within("data", "dataAt"), c.within("tweak", "tweakAt")
		c.xtsIn(src, data)
		c.say("The blocks, and beside them the tweak of the next unit.")
		c.nextAddress()
		c.nextTweak()
		from := []keys{{stream: data, regs: dataKey, have: true}, {stream: tweak, regs: tweakKey}}
		c.aes("round", c.reg("count"), c.reg("rounds"), from, slices.Concat(next, up), slices.Concat(next, down))
		c.xtsOut(dst)
	})
	c.wipe()
}

// esp32 does groups of four units of 32 bytes: each has an AES-256 key of its own,
// and two blocks.
func esp32(c *code, dir direction) {
	src, dst, in := c.stream("src"), c.stream("dst"), c.stream("keys")
	first, second, tmp := c.regs("first"), c.regs("second"), c.regs("tmp")
	block, round := c.regs("block"), c.regs("round")
	var lanes []lane
	for i, b := range block {
		lanes = append(lanes, lane{b, round[i/2], dir})
	}
	c.setup()
	c.loop("group", c.reg("groups"), "", []*stream{in, src, dst}, func() {
		c.say("The round keys of the four units go to the schedules, 64 bytes per round.")
		c.rcon(1)
		for i := range first {
			c.get(in, false, first[i])
			c.get(in, false, second[i])
		}
		at := c.within("schedules", "at")
		c.open(at)
		// The keys of the equivalent inverse cipher (FIPS 197, 5.3.5), but not of the
		// first and the last round.
		put := func(regs []string) {
			if dir == inverse {
				c.say("As the inverse cipher has them.")
				for i, r := range regs {
					c.inverseKey(r, round[i])
				}
				regs = round
			}
			c.put(at, false, regs...)
		}
		expand := func(k, prev []string, rot bool) {
			for i := range k {
				c.key(k[i], prev[i], tmp[2*i%len(tmp)], tmp[(2*i+1)%len(tmp)], rot, fmt.Sprintf(" of unit %d", i))
			}
		}
		c.put(at, false, first...)
		put(second)
		c.loop("expand", c.reg("count"), imm(6), []*stream{at}, func() {
			expand(first, second, true)
			put(first)
			expand(second, first, false)
			put(second)
			c.doubleRcon()
		})
		expand(first, second, true)
		c.put(at, true, first...)

		c.say("The blocks.")
		c.get(src, false, block...)
		c.reverse(block...)
		at.both = true
		if dir == inverse {
			at.down = true
		} else {
			at = c.within("schedules", "at")
			at.both = true
			c.open(at)
		}
		c.aes("round", c.reg("count"), imm(13), []keys{{stream: at, regs: round}}, lanes, lanes)
		c.reverse(block...)
		c.put(dst, false, block...)
	})
	c.wipe()
}
