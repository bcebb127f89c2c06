package provision

import (
	"context"
	"crypto/md5" //nolint:gosec // what the ROM computes over its flash, not a signature
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/layout"
)

// prepared is a key and the ciphertext of all regions under it. They are made
// while the board is being connected to. The key is nobody's until the unit is
// admitted, and dies with the run otherwise.
type prepared struct {
	key     keystore.Key
	regions []layout.Ciphertext
	err     error
}

// prepare begins to make a key and what goes to flash. The function that it
// returns waits for them; it may be called more than once.
func prepare(job *Job) func() prepared {
	made := make(chan prepared, 1)
	go func() { made <- prepareKey(job, 0) }()
	return sync.OnceValue(func() prepared { return <-made })
}

// prepareKey makes a key of n bytes, 0 for the usual length, and what goes to flash
// under it.
func prepareKey(job *Job, n int) (p prepared) {
	if n == 0 {
		p.key, p.err = keystore.Generate(job.Recipe.Scheme())
	} else {
		p.key, p.err = keystore.GenerateLen(job.Recipe.Scheme(), n)
	}
	if p.err != nil {
		p.err = stationError(p.err, "the operating system gives no random numbers: stop the station", "no key could be made")
		return p
	}
	p.regions, p.err = encrypt(job, p.key)
	return p
}

// encrypt makes what goes to flash under a key.
func encrypt(job *Job, key keystore.Key) (regions []layout.Ciphertext, err error) {
	err = useCipher(job, key, func(c flashcrypt.Cipher) error {
		regions, err = job.Layout.Encrypt(c)
		return err
	})
	return regions, err
}

// useCipher lends the cipher that the chip has with a key.
func useCipher(job *Job, key keystore.Key, f func(flashcrypt.Cipher) error) error {
	return key.Use(func(b []byte) error {
		cipher, err := flashcrypt.New(job.Recipe.Scheme(), b, flashCryptConfig)
		if err != nil {
			return err
		}
		defer cipher.Wipe() // it holds a copy of the key
		return f(cipher)
	})
}

// writeFlash gives the unit its key, writes every region as ciphertext and proves
// it, all before the first fuse: a fault here costs nothing.
func (u *unit) writeFlash(ctx context.Context) error {
	p := u.prepared()
	if p.err != nil {
		return p.err
	}
	if n := u.keyLen(); n != p.key.Len() {
		p.key.Wipe()
		if p = prepareKey(u.job, n); p.err != nil {
			return p.err
		}
	}
	u.key = p.key
	err := u.deriveSecrets()
	for errors.Is(err, encimg.ErrUnusableKey) { // one key in four thousand million
		u.key.Wipe()
		if p = prepareKey(u.job, u.keyLen()); p.err != nil {
			return p.err
		}
		u.key = p.key
		err = u.deriveSecrets()
	}
	if err != nil {
		return err
	}
	u.fp = p.key.Fingerprint()
	u.res.KeyFingerprint = u.fp.String()
	if err := u.nameSlots(u.slots, func(keySlot) bool { return true }); err != nil {
		return err
	}
	if err := u.reserve(ctx); err != nil {
		return err
	}
	return u.writeRegions(ctx, p.regions)
}

// keyLen is how many bytes the chip's blocks take of the flash encryption key: fewer
// than is usual on an ESP32 with coding scheme 3/4.
func (u *unit) keyLen() int {
	n := 0
	for i, l := range u.plan.KeyLens(0) {
		if u.slots[i].origin.kind == originFlash {
			n += l
		}
	}
	return n
}

// writeWithKey writes what goes to flash under the run's key, which the unit has.
func (u *unit) writeWithKey(ctx context.Context) error {
	regions, err := encrypt(u.job, u.key)
	if err != nil {
		return err
	}
	u.repeat = true // under this key the flash may hold it already
	return u.writeRegions(ctx, regions)
}

// writeRegions writes and proves.
func (u *unit) writeRegions(ctx context.Context, regions []layout.Ciphertext) error {
	regions, err := u.withUnitData(regions, u.key)
	if err != nil {
		return err
	}
	u.noteImages(regions)

	intent := map[string]any{"regions": u.res.Images, "erase": u.job.Layout.Erase, "baud": u.baud()}
	if u.job.Layout.UnitData != nil {
		f := u.fields()
		intent["unit_data"] = unitFacts{Serial: f.Serial, Lot: f.Lot, Station: f.Station}
	}
	err = u.do(ctx, stepFlash, intent, func(ctx context.Context) (observed, error) {
		return u.flashAll(ctx, regions)
	})
	if err != nil {
		return err
	}
	return u.do(ctx, stepVerify, map[string]any{"regions": len(regions), "erased": len(u.job.Layout.Erase)},
		func(ctx context.Context) (observed, error) { return u.verifyAll(ctx, regions) })
}

// reserve makes the key its unit's own in a keystore that can do so ahead of the
// record: a unit that has a key already, or a keystore that is away, shows before
// the flash is written. A reservation that no record follows blocks the unit for
// other stations; this one's next start supersedes it (reconcile).
func (u *unit) reserve(ctx context.Context) error {
	r, ok := u.Store.(keystore.Reserver)
	if !ok {
		return nil
	}
	return u.do(ctx, stepReserve, map[string]any{"key_fingerprint": u.fp.String()}, func(ctx context.Context) (observed, error) {
		if err := r.Reserve(ctx, u.record().Meta()); err != nil {
			return nil, keystoreFailure(ctx, err)
		}
		u.reserved = true
		return observed{"key_fingerprint": u.fp.String()}, nil
	})
}

// release gives up a reservation whose key this run did not store: nobody will
// use it, and a board that is scrapped has no next run. If the keystore does not
// take it, the next start of the job does it.
func (u *unit) release(ctx context.Context) {
	if !u.reserved {
		return
	}
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), storePatience)
	defer cancel()
	_ = u.keyState(own, keystore.Superseded, "reserved, and the run ended before its record was stored")
}

// flashCryptConfig is FLASH_CRYPT_CONFIG on the ESP32: every tweak on. The
// other chips have no such fuse.
const flashCryptConfig = 0xF

func (u *unit) noteImages(regions []layout.Ciphertext) {
	u.res.Images = u.res.Images[:0]
	for i, r := range regions {
		u.res.Images = append(u.res.Images, ImageResult{
			Name: r.Region.Name, Offset: r.Region.Offset, Length: len(r.Data), Encrypted: r.Region.Encrypt,
			PlaintextSHA256: u.plainHash(i), CiphertextSHA256: Hash(r.SHA256),
		})
	}
}

// plainHash is the SHA-256 of a region's plaintext: the product's, or after those the
// unit's own.
func (u *unit) plainHash(i int) Hash {
	if i < len(u.job.plain) {
		return u.job.plain[i]
	}
	return u.unitPlain
}

// flashAll erases and writes. A rate that the line does not carry is given up
// for a lower one, down to 115200.
func (u *unit) flashAll(ctx context.Context, regions []layout.Ciphertext) (observed, error) {
	total := u.flashWork(regions)
	var err error
	for _, baud := range bauds(u.baud()) {
		err = u.startStub(ctx)
		if err == nil && baud != u.client.Baud() {
			if err = u.client.ChangeBaud(ctx, baud); err == nil {
				err = u.client.ExchangeTest(ctx, 256)
			}
		}
		if err == nil {
			err = u.flashAt(ctx, regions, total)
			u.repeat = true
		}
		if err == nil {
			u.res.Baud = baud
			saw := observed{"baud": baud, "bytes": u.res.BytesWritten}
			if st, ok := u.job.Recipe.FlasherStub(u.rev); ok && u.client.OnStub() {
				saw["stub_sha256"] = Hash(st.SHA256)
			}
			return saw, nil
		}
		if ctx.Err() != nil || errors.Is(err, rom.ErrUnplugged) {
			return nil, err
		}
		u.emit(stepFlash, 0, total, fmt.Sprintf("the line does not carry %d baud: %v", baud, err))
		if rerr := u.reconnect(ctx); rerr != nil {
			return nil, errors.Join(rerr, err)
		}
		if _, rerr := u.attachFlash(ctx); rerr != nil {
			return nil, errors.Join(rerr, err)
		}
	}
	return nil, stationError(err, "check cable, fixture and power, then start again; nothing was burned",
		"the flash could not be written at any baud rate")
}

// startStub starts the recipe's flasher stub for writing and proving flash, where the
// silicon runs one. Nothing needs it: without, it goes on with the ROM's loader. It
// ends with the reset before the first burn (prepareBurn).
func (u *unit) startStub(ctx context.Context) error {
	st, ok := u.job.Recipe.FlasherStub(u.rev)
	if !ok || u.stubless || u.client.OnStub() {
		return nil
	}
	without := func(err error) {
		u.stubless = true
		u.warn(fmt.Sprintf("the flash is written without the flasher stub: %v", err))
	}
	if err := u.client.StubFits(ctx, u.rev); errors.Is(err, rom.ErrStub) {
		without(err)
		return nil
	} else if err != nil {
		return err
	}
	err := u.client.RunStub(ctx, st.Stub, u.rev)
	if err == nil {
		_, err = u.attachFlash(ctx)
		return err
	}
	if ctx.Err() != nil || errors.Is(err, rom.ErrUnplugged) {
		return err
	}
	without(err)
	if err := u.reconnect(ctx); err != nil {
		return err
	}
	_, err = u.attachFlash(ctx)
	return err
}

// baud is the rate to begin with: the product's, unless the line is slower.
func (u *unit) baud() int {
	if u.line.MaxBaud > 0 {
		return min(u.job.Recipe.Baud, max(u.line.MaxBaud, burnBaud))
	}
	return u.job.Recipe.Baud
}

func bauds(first int) []int {
	var out []int
	for _, b := range []int{first, 230400, burnBaud} {
		if b <= first && (len(out) == 0 || b < out[len(out)-1]) {
			out = append(out, b)
		}
	}
	return out
}

func (u *unit) flashWork(regions []layout.Ciphertext) int64 {
	var n int64
	for _, r := range regions {
		n += int64(len(r.Data))
	}
	for _, e := range u.job.Layout.Erase {
		n += int64(e.Size)
	}
	return n
}

func (u *unit) flashAt(ctx context.Context, regions []layout.Ciphertext, total int64) error {
	var done int64
	for _, e := range u.job.Layout.Erase {
		if err := u.eraseRange(ctx, stepFlash, e, done, total); err != nil {
			return err
		}
		done += int64(e.Size)
	}
	for _, r := range regions {
		if err := u.writeRegion(ctx, stepFlash, r, done, total); err != nil {
			return err
		}
		done += int64(len(r.Data))
	}
	return nil
}

func (u *unit) eraseRange(ctx context.Context, step string, e layout.Range, base, total int64) error {
	if u.repeat && step == stepFlash {
		if sum, err := u.client.FlashMD5(ctx, e.Offset, e.Size); err == nil && sum == u.job.blank[e.Size] {
			return nil
		}
	}
	err := u.client.EraseFlash(ctx, e.Offset, e.Size, func(n, _ uint32) { u.emit(step, base+int64(n), total, "erase "+e.Name) })
	if err != nil {
		return fmt.Errorf("erase %s at 0x%x: %w", e.Name, e.Offset, err)
	}
	return nil
}

// repeatBlock is what a repeat compares at once, so that it writes little that is
// right already: a block of the flash's own.
const repeatBlock = 64 << 10

// writeRegion writes a region; in a repeat only the blocks of it that are not right.
func (u *unit) writeRegion(ctx context.Context, step string, r layout.Ciphertext, base, total int64) error {
	if !u.repeat {
		return u.writePart(ctx, step, r, 0, len(r.Data), base, total)
	}
	from := -1 // of what is to be written
	for at := 0; ; at += repeatBlock {
		end := min(at+repeatBlock, len(r.Data))
		wrong := false
		if at < len(r.Data) {
			if err := ctx.Err(); err != nil {
				return err
			}
			sum, err := u.client.FlashMD5(ctx, r.Region.Offset+uint32(at), uint32(end-at))
			wrong = err != nil || sum != md5.Sum(r.Data[at:end]) //nolint:gosec // see the import
		}
		switch {
		case wrong && from < 0:
			from = at
		case !wrong && from >= 0:
			if err := u.writePart(ctx, step, r, from, min(at, len(r.Data)), base, total); err != nil {
				return err
			}
			from = -1
		}
		if at >= len(r.Data) {
			return nil
		}
		u.emit(step, base+int64(end), total, "compare "+r.Region.Name)
	}
}

func (u *unit) writePart(ctx context.Context, step string, r layout.Ciphertext, from, to int, base, total int64) error {
	last := 0
	err := u.client.WriteFlash(ctx, r.Region.Offset+uint32(from), r.Data[from:to], func(n, _ int) {
		u.res.BytesWritten += int64(max(n-last, 0))
		last = n
		u.emit(step, base+int64(from+n), total, "write "+r.Region.Name)
	})
	if err != nil {
		return fmt.Errorf("write %s at 0x%x: %w", r.Region.Name, r.Region.Offset+uint32(from), err)
	}
	return nil
}

// verifyAll compares the MD5 of every region after the last write, since a later
// erase could have hit an earlier region, and that the rest is erased. What is
// wrong is written or erased again, and then everything is compared anew.
func (u *unit) verifyAll(ctx context.Context, regions []layout.Ciphertext) (observed, error) {
	for try := 1; ; try++ {
		bad, err := u.wrongRegions(ctx, regions)
		if err != nil {
			return nil, err
		}
		full, err := u.notErased(ctx)
		if err != nil {
			return nil, err
		}
		if len(bad)+len(full) == 0 {
			break
		}
		if try == rewriteTries && len(bad) > 0 {
			return nil, failUnit("replace the board: its flash does not keep what is written",
				"flash region %s at 0x%x reads back wrong %d times", bad[0].Region.Name, bad[0].Region.Offset, try)
		}
		if try == rewriteTries {
			return nil, failUnit("replace the board: its flash does not erase",
				"partition %s at 0x%x is not erased after %d tries", full[0].Name, full[0].Offset, try)
		}
		for _, e := range full {
			if err := u.eraseRange(ctx, stepVerify, e, 0, int64(e.Size)); err != nil {
				return nil, err
			}
		}
		u.repeat = true
		for _, r := range bad {
			if err := u.writeRegion(ctx, stepVerify, r, 0, int64(len(r.Data))); err != nil {
				return nil, err
			}
		}
	}
	seen := make([]flashed, len(regions))
	for i, r := range regions {
		seen[i] = flashed{
			Name: r.Region.Name, Offset: r.Region.Offset, Length: len(r.Data), Encrypted: r.Region.Encrypt,
			MD5: hex.EncodeToString(r.MD5[:]), PlaintextSHA256: u.res.Images[i].PlaintextSHA256.String(),
			CiphertextSHA256: u.res.Images[i].CiphertextSHA256.String(),
		}
	}
	return observed{"regions": seen}, nil
}

func (u *unit) wrongRegions(ctx context.Context, regions []layout.Ciphertext) ([]layout.Ciphertext, error) {
	var bad []layout.Ciphertext
	for _, r := range regions {
		ok, err := u.flashHolds(ctx, r.Region.Offset, uint32(len(r.Data)), r.MD5)
		if err != nil {
			return nil, err
		}
		if !ok {
			bad = append(bad, r)
		}
	}
	return bad, nil
}

func (u *unit) notErased(ctx context.Context) ([]layout.Range, error) {
	var full []layout.Range
	for _, e := range u.job.Layout.Erase {
		ok, err := u.flashHolds(ctx, e.Offset, e.Size, u.job.blank[e.Size])
		if err != nil {
			return nil, err
		}
		if !ok {
			full = append(full, e)
		}
	}
	return full, nil
}

// flashHolds compares the MD5 of a part of the flash. A request carries no
// checksum that counts, so one with a damaged address gets a refusal, or the right
// answer to another question: a difference must be seen again to count. Noise
// cannot make the wanted digest.
func (u *unit) flashHolds(ctx context.Context, at, size uint32, want [md5.Size]byte) (bool, error) {
	var err error
	for range md5Tries {
		var sum [md5.Size]byte
		sum, err = u.client.FlashMD5(ctx, at, size)
		switch {
		case ctx.Err() != nil || errors.Is(err, rom.ErrUnplugged):
			return false, err
		case err == nil && sum == want:
			return true, nil
		}
	}
	return false, err
}

// verifyEarlier proves that the flash still holds what an earlier run of this
// job verified. The key is not at hand any more, so its ciphertext could not be
// made again.
func (u *unit) verifyEarlier(ctx context.Context) error {
	if len(u.past.images) == 0 {
		return quarantine("set the board aside for an engineer", "the key is in silicon and the journal does not tell what is in flash")
	}
	return u.do(ctx, stepVerify, map[string]any{"regions": len(u.past.images)}, func(ctx context.Context) (observed, error) {
		u.res.Images = u.res.Images[:0]
		for _, r := range u.past.images {
			var want [md5.Size]byte
			if n, err := hex.Decode(want[:], []byte(r.MD5)); err != nil || n != len(want) {
				return nil, errors.Join(fmt.Errorf("the journal's MD5 %q of region %s is none", r.MD5, r.Name), err)
			}
			ok, err := u.flashHolds(ctx, r.Offset, uint32(r.Length), want)
			if err != nil {
				return nil, err
			}
			if !ok {
				return nil, quarantine("set the board aside: it needs its key from the keystore to be flashed again",
					"flash region %s at 0x%x is not what the journal says", r.Name, r.Offset)
			}
			img := ImageResult{Name: r.Name, Offset: r.Offset, Length: r.Length, Encrypted: r.Encrypted}
			_, errP := hex.Decode(img.PlaintextSHA256[:], []byte(r.PlaintextSHA256))
			_, errC := hex.Decode(img.CiphertextSHA256[:], []byte(r.CiphertextSHA256))
			if err := errors.Join(errP, errC); err != nil {
				return nil, err
			}
			u.res.Images = append(u.res.Images, img)
		}
		return observed{"regions": u.past.images}, nil
	})
}
