package espsim

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
)

// host is the other end of the line for tests: it sends requests and takes what
// comes back apart.
type host struct {
	t testing.TB
	c *Chip
}

// connect resets the chip into its loader and synchronises.
func connect(t testing.TB, c *Chip) *host {
	t.Helper()
	h := &host{t, c}
	c.ResetInto(true)
	h.received()
	if got := h.ask(opSync, syncData()); len(got) != syncReplies {
		t.Fatalf("SYNC got %d replies; the chip is %s", len(got), c.Status())
	}
	return h
}

func syncData() []byte {
	return append([]byte{7, 7, 0x12, 0x20}, bytes.Repeat([]byte{0x55}, 32)...)
}

// received gives all that the chip sent and nobody read.
func (h *host) received() []byte {
	h.t.Helper()
	buf := make([]byte, hostBuffer)
	n, _, _, err := h.c.take(buf)
	if err != nil {
		h.t.Fatalf("read: %v", err)
	}
	return buf[:n]
}

func (h *host) frames() (out [][]byte) {
	h.t.Helper()
	var r slipReader
	for _, b := range h.received() {
		if f, ok := r.feed(b); ok {
			out = append(out, f.body)
		}
	}
	return out
}

// packet builds a request with the right checksum field.
func packet(op byte, data []byte) []byte {
	p := binary.LittleEndian.AppendUint16([]byte{0, op}, uint16(len(data)))
	var sum uint32
	if (op == opFlashData || op == opDeflData || op == opMemData) && len(data) >= 16 {
		sum = 0xEF
		for _, b := range data[16:] {
			sum ^= uint32(b)
		}
	}
	return append(binary.LittleEndian.AppendUint32(p, sum), data...)
}

func words(w ...uint32) []byte { return wordBytes(w) }

// ask sends a request and gives the replies.
func (h *host) ask(op byte, data []byte) [][]byte {
	h.t.Helper()
	return h.send(packet(op, data))
}

func (h *host) send(p []byte) [][]byte {
	h.t.Helper()
	if _, err := h.c.Write(h.t.Context(), slipEncode(p)); err != nil {
		h.t.Fatalf("write: %v", err)
	}
	return h.frames()
}

// outcome is one reply, taken apart.
type outcome struct {
	op     byte
	value  uint32
	data   []byte
	status [4]byte
}

func (h *host) one(op byte, data []byte) outcome {
	h.t.Helper()
	got := h.ask(op, data)
	if len(got) != 1 {
		h.t.Fatalf("op %02x got %d replies: %x", op, len(got), got)
	}
	return split(h.t, got[0])
}

func split(t testing.TB, f []byte) outcome {
	t.Helper()
	if len(f) < 12 || f[0] != 1 || int(binary.LittleEndian.Uint16(f[2:])) != len(f)-8 {
		t.Fatalf("malformed reply %x", f)
	}
	return outcome{f[1], binary.LittleEndian.Uint32(f[4:]), f[8 : len(f)-4], [4]byte(f[len(f)-4:])}
}

// do sends a request that must succeed.
func (h *host) do(op byte, data []byte) outcome {
	h.t.Helper()
	o := h.one(op, data)
	if o.op != op || o.status[0] != 0 {
		h.t.Fatalf("op %02x: %+v", op, o)
	}
	return o
}

func (h *host) read(addr uint32) uint32 {
	h.t.Helper()
	return h.do(opReadReg, words(addr)).value
}

func (h *host) write(addr, v uint32) {
	h.t.Helper()
	h.do(opWriteReg, words(addr, v, 0xFFFFFFFF, 0))
}

// attach switches the flash's supply on where the loader does not, and attaches it.
func (h *host) attach() {
	h.t.Helper()
	if p := h.c.si.FlashPower; p.Off != nil && p.Off(h.c.revision) {
		h.write(p.LDO, 1<<7)
		h.write(p.Force, 3)
	}
	h.do(opSPIAttach, words(0, 0))
}

// begin is FLASH_BEGIN's or FLASH_DEFL_BEGIN's data for this chip.
func (h *host) begin(size, blocks, block, offset uint32) []byte {
	w := []uint32{size, blocks, block, offset}
	if h.c.model.ROM.FlashBeginWords == 5 {
		w = append(w, 0)
	}
	return words(w...)
}

// idle waits until a command of the eFuse controller is over.
func (h *host) idle() {
	h.t.Helper()
	for zero, n := 0, 0; zero < 2; n++ {
		if n > 20 {
			h.t.Fatal("the eFuse controller stays busy")
		}
		if zero++; h.read(h.c.model.EFuse.Cmd)&3 != 0 {
			zero = 0
		}
	}
}

func (h *host) timing() {
	h.t.Helper()
	for _, w := range h.c.timing() {
		h.write(w.Addr, w.Value)
	}
}

// program runs the program command on what stands in the registers.
func (h *host) program(block int) {
	h.t.Helper()
	ef := h.c.model.EFuse
	h.write(ef.Conf, confProgram)
	cmd := uint32(cmdProgram)
	if ef.Kind == chip.EFuseRS {
		cmd |= uint32(block) << 2
	}
	h.write(ef.Cmd, cmd)
	h.idle()
}

// fill puts words for a block into the programming registers, all others zero.
func (h *host) fill(block int, w []uint32) {
	h.t.Helper()
	ef := h.c.model.EFuse
	if ef.Kind == chip.EFuseESP32 {
		for _, b := range h.c.fuse.blocks {
			for i := range b.Words {
				var v uint32
				if b.Index == block && i < len(w) {
					v = w[i]
				}
				h.write(ef.Base+b.WriteOff+uint32(4*i), v)
			}
		}
		return
	}
	data := append(slices.Clone(w), make([]uint32, 8-len(w))...)
	if block != 0 {
		data = append(data, rsEncode(data)...)
	}
	for i, v := range data { // CHECK_VALUE follows PGM_DATA
		h.write(ef.PgmData+uint32(4*i), v)
	}
}

func (h *host) refresh() {
	h.t.Helper()
	ef := h.c.model.EFuse
	h.write(ef.Conf, confRead)
	h.write(ef.Cmd, cmdRead)
	h.idle()
}

// burn is a whole burn as esp-facts B.5 has it.
func (h *host) burn(block int, w ...uint32) {
	h.t.Helper()
	h.timing()
	h.fill(block, w)
	h.program(block)
	h.refresh()
}

// block reads a block's registers.
func (h *host) block(i int) []uint32 {
	h.t.Helper()
	b := h.c.fuse.blocks[i]
	out := make([]uint32, b.Words)
	for w := range out {
		out[w] = h.read(h.c.model.EFuse.Base + b.ReadOff + uint32(4*w))
	}
	return out
}
