package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	appDescMagic = 0xABCD5432
	// AppDescSize is the length of esp_app_desc_t.
	AppDescSize = 256
)

// AppDesc is esp_app_desc_t, the first 256 bytes of an application's first
// segment (esp-facts D.2; ESP-IDF esp_app_format/include/esp_app_desc.h). The
// strings are as stored, up to their first zero byte: print them with %q.
type AppDesc struct {
	SecureVersion      uint32 // for anti-rollback
	Version            string // at most 32 bytes
	ProjectName        string // at most 32 bytes
	Time               string // of the build, at most 16 bytes
	Date               string // of the build, at most 16 bytes
	IDFVer             string // at most 32 bytes
	AppELFSHA256       [32]byte
	MinEFuseBlkRevFull uint16 // major*100 + minor
	MaxEFuseBlkRevFull uint16 // 0 and 0xFFFF are "no limit"
	MMUPageSize        uint8  // log2 of the bytes in a flash page; 0 in older images: 64 KB
}

// parseAppDesc gives nil when there is no description at the start of b.
func parseAppDesc(b []byte) *AppDesc {
	le := binary.LittleEndian
	if len(b) < AppDescSize || le.Uint32(b) != appDescMagic {
		return nil
	}
	text := func(off, n int) string {
		s, _, _ := bytes.Cut(b[off:off+n], []byte{0})
		return string(s)
	}
	return &AppDesc{
		SecureVersion: le.Uint32(b[0x04:]),
		Version:       text(0x10, 32), ProjectName: text(0x30, 32),
		Time: text(0x50, 16), Date: text(0x60, 16), IDFVer: text(0x70, 32),
		AppELFSHA256:       [32]byte(b[0x90:0xB0]),
		MinEFuseBlkRevFull: le.Uint16(b[0xB0:]), MaxEFuseBlkRevFull: le.Uint16(b[0xB2:]),
		MMUPageSize: b[0xB4],
	}
}

// encode gives the 256 bytes of the description.
func (d *AppDesc) encode() ([]byte, error) {
	le := binary.LittleEndian
	b := make([]byte, AppDescSize)
	le.PutUint32(b, appDescMagic)
	le.PutUint32(b[0x04:], d.SecureVersion)
	for _, f := range []struct {
		name   string
		off, n int
		s      string
	}{
		{"version", 0x10, 32, d.Version},
		{"project_name", 0x30, 32, d.ProjectName},
		{"time", 0x50, 16, d.Time},
		{"date", 0x60, 16, d.Date},
		{"idf_ver", 0x70, 32, d.IDFVer},
	} {
		if len(f.s) > f.n || bytes.IndexByte([]byte(f.s), 0) >= 0 {
			return nil, errAt(descOffset+f.off, "app_desc."+f.name, "%q does not fit: at most %d bytes, none of them zero", f.s, f.n)
		}
		copy(b[f.off:], f.s)
	}
	copy(b[0x90:], d.AppELFSHA256[:])
	le.PutUint16(b[0xB0:], d.MinEFuseBlkRevFull)
	le.PutUint16(b[0xB2:], d.MaxEFuseBlkRevFull)
	b[0xB4] = d.MMUPageSize
	return b, nil
}

// String is the project and its version.
func (d *AppDesc) String() string { return fmt.Sprintf("%q %q", d.ProjectName, d.Version) }
