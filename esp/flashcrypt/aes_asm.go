//go:build (amd64 || arm64) && !purego

package flashcrypt

// roundKeys are the round keys of AES-128 (11) or AES-256 (15), in the order in
// which they are used.
type roundKeys [15][16]byte

// xtsSchedule holds the round keys of an XTS key.
type xtsSchedule struct {
	rounds   int       // 10 or 14
	enc, dec roundKeys // of the data key
	tweak    roundKeys // of the tweak key, to encrypt
}

// expand sets the schedule from a data key and a tweak key of 16 or 32 bytes.
func (s *xtsSchedule) expand(data, tweak []byte) {
	if len(data) == 16 {
		s.rounds = 10
		expand128(&data[0], &s.enc)
		expand128(&tweak[0], &s.tweak)
	} else {
		s.rounds = 14
		expand256(&data[0], &s.enc)
		expand256(&tweak[0], &s.tweak)
	}
	invertKeys(s.rounds, &s.dec, &s.enc)
}

// xtsUnits encrypts or decrypts whole units: len(dst) == len(src), a multiple of
// xtsUnit, not 0; addr is a multiple of xtsUnit.
func xtsUnits(s *xtsSchedule, dst, src []byte, addr uint32, decrypt bool) {
	if decrypt {
		xtsDecrypt(s.rounds, &s.dec, &s.tweak, &dst[0], &src[0], len(src)/xtsUnit, addr)
	} else {
		xtsEncrypt(s.rounds, &s.enc, &s.tweak, &dst[0], &src[0], len(src)/xtsUnit, addr)
	}
}

const (
	esp32Lanes = 4                      // units that the assembly has in flight
	esp32Group = esp32Lanes * esp32Unit // bytes of them
	esp32Batch = 16                     // units per call: their keys lie on the stack
)

// esp32Schedules holds the round keys of the units in flight: round by round,
// one per lane.
type esp32Schedules [15][esp32Lanes][16]byte

// cryptAsm gives groups of four units to the assembly, with their keys. What is
// left at the ends goes there in a group of its own.
func (k *esp32Keys) cryptAsm(dst, src []byte, addr uint32, decrypt bool) {
	var keys [esp32Batch]keyWords
	var schedules esp32Schedules
	key := k.keyAt(addr)
	for len(src) > 0 {
		off := int(addr % esp32Unit)
		whole := off == 0 && len(src) >= esp32Group
		n := esp32Group
		if whole {
			n = min(len(src)&^(esp32Group-1), esp32Batch*esp32Unit)
		}
		for i := range n / esp32Unit {
			keys[i] = key
			k.next(&key, addr-uint32(off)+uint32(i+1)*esp32Unit)
		}
		if whole {
			esp32Units(&keys, &schedules, dst, src, n/esp32Group, decrypt)
		} else {
			var group [esp32Group]byte
			n = copy(group[off:], src)
			esp32Units(&keys, &schedules, group[:], group[:], 1, decrypt)
			copy(dst, group[off:off+n])
		}
		dst, src, addr = dst[n:], src[n:], addr+uint32(n)
	}
	clear(keys[:])
	clear(schedules[:])
	clear(key[:])
}

// esp32Units calls by name, not through a variable: then nothing escapes.
func esp32Units(keys *[esp32Batch]keyWords, schedules *esp32Schedules, dst, src []byte, groups int, decrypt bool) {
	if decrypt {
		esp32Decrypt(&keys[0], schedules, &dst[0], &src[0], groups)
	} else {
		esp32Encrypt(&keys[0], schedules, &dst[0], &src[0], groups)
	}
}

//go:noescape
func expand128(key *byte, enc *roundKeys)

//go:noescape
func expand256(key *byte, enc *roundKeys)

// invertKeys makes the keys of the equivalent inverse cipher (FIPS 197, 5.3.5).
//
//go:noescape
func invertKeys(rounds int, dec, enc *roundKeys)

//go:noescape
func xtsEncrypt(rounds int, data, tweak *roundKeys, dst, src *byte, units int, addr uint32)

//go:noescape
func xtsDecrypt(rounds int, data, tweak *roundKeys, dst, src *byte, units int, addr uint32)

// esp32Encrypt is flash encryption: the AES decrypt operation.
//
//go:noescape
func esp32Encrypt(keys *keyWords, schedules *esp32Schedules, dst, src *byte, groups int)

//go:noescape
func esp32Decrypt(keys *keyWords, schedules *esp32Schedules, dst, src *byte, groups int)
