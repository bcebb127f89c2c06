package rom

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
)

// Lengths of GET_SECURITY_INFO's data: the ESP32-S2's ends before the chip id
// (esp-facts A.4).
const (
	securityInfoLong  = 20
	securityInfoShort = 12
)

// SecurityFlags are the first word of the security information.
type SecurityFlags uint32

// The flags (esp-facts A.4).
const (
	FlagSecureBoot           SecurityFlags = 1 << 0
	FlagAggressiveRevoke     SecurityFlags = 1 << 1
	FlagSecureDownload       SecurityFlags = 1 << 2
	FlagRevokedDigest0       SecurityFlags = 1 << 3
	FlagRevokedDigest1       SecurityFlags = 1 << 4
	FlagRevokedDigest2       SecurityFlags = 1 << 5
	FlagSoftJTAGDisabled     SecurityFlags = 1 << 6
	FlagHardJTAGDisabled     SecurityFlags = 1 << 7
	FlagUSBDisabled          SecurityFlags = 1 << 8
	FlagDownloadDCacheClosed SecurityFlags = 1 << 9
	FlagDownloadICacheClosed SecurityFlags = 1 << 10
)

var flagNames = []string{
	"SECURE_BOOT_EN", "SECURE_BOOT_AGGRESSIVE_REVOKE", "SECURE_DOWNLOAD_ENABLE",
	"SECURE_BOOT_KEY_REVOKE0", "SECURE_BOOT_KEY_REVOKE1", "SECURE_BOOT_KEY_REVOKE2",
	"SOFT_DIS_JTAG", "HARD_DIS_JTAG", "DIS_USB", "DIS_DOWNLOAD_DCACHE", "DIS_DOWNLOAD_ICACHE",
}

// Has reports whether all bits of want are set.
func (f SecurityFlags) Has(want SecurityFlags) bool { return f&want == want }

// String lists the flags by the vendor's names; bits without a name show as a
// number.
func (f SecurityFlags) String() string {
	var names []string
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if rest := f >> len(flagNames) << len(flagNames); rest != 0 {
		names = append(names, fmt.Sprintf("0x%08x", uint32(rest)))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, "|")
}

// SecurityInfo is what GET_SECURITY_INFO answers.
type SecurityInfo struct {
	Flags         SecurityFlags
	FlashCryptCnt uint8
	KeyPurposes   [6]uint8
	Spare         uint8  // not documented, kept
	HasChipID     bool   // false on the ESP32-S2, whose answer ends here
	ChipID        uint32 // as in image headers
	APIVersion    uint32
}

// ParseSecurityInfo reads the reply's data.
func ParseSecurityInfo(b []byte) (SecurityInfo, error) {
	var s SecurityInfo
	if len(b) != securityInfoLong && len(b) != securityInfoShort {
		return s, fmt.Errorf("security information of %d bytes: want %d or %d", len(b), securityInfoLong, securityInfoShort)
	}
	s.Flags = SecurityFlags(binary.LittleEndian.Uint32(b))
	s.FlashCryptCnt = b[4]
	copy(s.KeyPurposes[:], b[5:11])
	s.Spare = b[11]
	if len(b) == securityInfoLong {
		s.HasChipID = true
		s.ChipID = binary.LittleEndian.Uint32(b[12:])
		s.APIVersion = binary.LittleEndian.Uint32(b[16:])
	}
	return s, nil
}

// Bytes is the inverse of ParseSecurityInfo: the chip's own words, for evidence.
func (s SecurityInfo) Bytes() []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(s.Flags))
	b = append(b, s.FlashCryptCnt)
	b = append(b, s.KeyPurposes[:]...)
	b = append(b, s.Spare)
	if s.HasChipID {
		b = append(b, words(s.ChipID, s.APIVersion)...)
	}
	return b
}

// FlashEncryption reports whether the crypt counter has flash encryption on.
func (s SecurityInfo) FlashEncryption() bool { return bits.OnesCount8(s.FlashCryptCnt)%2 == 1 }

// SecureDownload reports Secure Download Mode.
func (s SecurityInfo) SecureDownload() bool { return s.Flags.Has(FlagSecureDownload) }

// String sums it up; there is no secret in it.
func (s SecurityInfo) String() string {
	out := fmt.Sprintf("flags %v, crypt count %d, key purposes %d", s.Flags, s.FlashCryptCnt, s.KeyPurposes)
	if s.HasChipID {
		out += fmt.Sprintf(", chip id %d, API %d", s.ChipID, s.APIVersion)
	}
	return out
}

// SecurityInfo asks for the security state, until two successive answers agree.
// On a chip that does not know the command, such as the ESP32, the error
// satisfies Refused.
func (c *Client) SecurityInfo(ctx context.Context) (SecurityInfo, error) {
	info, err := agreed(c, OpGetSecurityInfo.String(), func() (SecurityInfo, error) {
		for n := 1; ; n++ {
			s, err := Do(ctx, c, GetSecurityInfo{})
			if err == nil || n == tries || ctx.Err() != nil || isStatus(err) || !mayBeNoise(err) {
				return s, err
			}
		}
	})
	if err == nil {
		c.secure = info.SecureDownload()
	}
	return info, err
}

// family names the chips that GET_SECURITY_INFO can announce (esp-facts A.5), for
// errors about those that this build does not know.
var family = map[uint32]string{25: "ESP32-H21", 28: "ESP32-H4", 32: "ESP32-S31"}

// magics of chips that this build does not know.
var magics = map[uint32]string{0xFFF0C101: "ESP8266"}

// Detect finds out which chip this is and sets the client up for it: by the chip
// id of GET_SECURITY_INFO where there is one, otherwise by the word at
// 0x40001000. A chip whose security information ends before the id and that lets no
// register be read is an ESP32-S2 in Secure Download Mode (esp-facts A.5). A chip that this build does not know is
// chip.ErrUnknown, with its name where that is known.
func (c *Client) Detect(ctx context.Context) (chip.Model, error) {
	m, err := c.detect(ctx)
	if err != nil {
		return chip.Model{}, fmt.Errorf("detect the chip: %w", err)
	}
	c.model, c.detected = m, true
	return m, nil
}

func (c *Client) detect(ctx context.Context) (chip.Model, error) {
	// A refused GET_SECURITY_INFO is normal on an ESP32. On others it is noise,
	// or a known slip right after connecting over USB (esptool#813), so it is
	// asked again when the second question finds one of those.
	for again := false; ; again = true {
		info, err := c.SecurityInfo(ctx)
		if err != nil && !Refused(err) {
			return chip.Model{}, err
		}
		if err == nil && info.HasChipID {
			return byChipID(info.ChipID)
		}
		refused := err != nil

		m, err := c.byMagic(ctx)
		switch {
		case Refused(err) && refused && !again:
		case Refused(err) && !refused && info.SecureDownload():
			return withoutID()
		case Refused(err):
			return chip.Model{}, fmt.Errorf("%w: it tells no chip id and refuses READ_REG; this build knows %s", chip.ErrUnknown, known())
		case err != nil:
			return chip.Model{}, err
		case m.ROM.SecurityInfo && refused && !again:
		case m.ROM.SecurityInfo && refused:
			return chip.Model{}, fmt.Errorf("the %s refuses GET_SECURITY_INFO, which it must know: %w: connect again", m.Title, ErrNoise)
		default:
			c.secure = false // a register was read
			return m, nil
		}
	}
}

// withoutID is the chip whose security information has no chip id.
func withoutID() (chip.Model, error) {
	for _, m := range models() {
		if m.ROM.SecurityInfo && m.ROM.SecurityInfoBytes == securityInfoShort {
			return m, nil
		}
	}
	return chip.Model{}, fmt.Errorf("%w: it tells no chip id; this build knows %s", chip.ErrUnknown, known())
}

// known lists the chips of this build, for errors.
func known() string {
	var names []string
	for _, m := range models() {
		names = append(names, m.Name)
	}
	return strings.Join(names, ", ")
}

func byChipID(id uint32) (chip.Model, error) {
	// The ESP32's image id is 0, but its ROM announces none.
	if m, err := chip.ByID(chip.ID(id)); err == nil && id != uint32(chip.IDESP32) && id>>16 == 0 {
		return m, nil
	}
	name, ok := family[id]
	if !ok {
		name = "a new chip"
	}
	return chip.Model{}, fmt.Errorf("%w: %s (chip id %d); this build knows %s", chip.ErrUnknown, name, id, known())
}

// byMagic reads the word at 0x40001000. A value that names a chip of this build
// is proof enough; another one is read until two readings agree.
func (c *Client) byMagic(ctx context.Context) (chip.Model, error) {
	a, err := Do(ctx, c, ReadReg{Addr: chip.MagicRegister})
	if err == nil {
		if m, err := chip.ByMagic(a.Value); err == nil {
			return m, nil
		}
	}
	if err != nil && (Refused(err) || !mayBeNoise(err)) {
		return chip.Model{}, err
	}
	v, err := c.ReadRegAgreed(ctx, chip.MagicRegister)
	if err != nil {
		return chip.Model{}, err
	}
	m, err := chip.ByMagic(v)
	if name, ok := magics[v]; errors.Is(err, chip.ErrUnknown) && ok {
		return chip.Model{}, fmt.Errorf("%w: %s; this build knows %s", chip.ErrUnknown, name, known())
	}
	return m, err
}
