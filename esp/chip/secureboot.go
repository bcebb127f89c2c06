package chip

import "slices"

// SignatureScheme is a signature algorithm of Secure Boot V2 with its key
// length, as recipes and key records write it.
type SignatureScheme string

// The schemes of Secure Boot V2 (esp-facts E.1, E.2). SignECDSA192 exists in the
// block format and in the vendor's signing tool; ESP-IDF offers it for no chip.
const (
	SignRSA3072  SignatureScheme = "rsa3072"  // RSA-3072, PSS, SHA-256
	SignECDSA192 SignatureScheme = "ecdsa192" // NIST P-192, SHA-256
	SignECDSA256 SignatureScheme = "ecdsa256" // NIST P-256, SHA-256
	SignECDSA384 SignatureScheme = "ecdsa384" // NIST P-384, SHA-384
)

// ECDSA reports whether the scheme is one of the ECDSA ones, which ESP-IDF calls
// insecure for booting on some chips (SecureBoot.WeakECDSA).
func (s SignatureScheme) ECDSA() bool {
	return s == SignECDSA192 || s == SignECDSA256 || s == SignECDSA384
}

// DigestPlace says where a chip keeps the digests of Secure Boot keys.
type DigestPlace uint8

// Places of key digests (esp-facts B.9, E.1).
const (
	// DigestInKeyBlocks: each in a key block of its own, whose purpose is
	// SECURE_BOOT_DIGESTn.
	DigestInKeyBlocks DigestPlace = iota + 1
	// DigestInBlock2: the one digest is BLOCK2 of the ESP32.
	DigestInBlock2
	// DigestInKey0High: the first 16 bytes of the one digest are the high half of
	// the ESP32-C2's only key block, burned together with a flash encryption key.
	DigestInKey0High
)

// SchemeSupport is a scheme that a chip's boot code verifies, and since when.
type SchemeSupport struct {
	Scheme          SignatureScheme
	MinimumRevision Revision // 0: whenever the chip has Secure Boot V2
}

// SecureBoot says what Secure Boot V2 is on a chip (esp-facts E.1, E.4; ESP-IDF
// soc_caps.h, docs/en/security/secure-boot-v2.rst, bootloader/Kconfig.projbuild).
// Fields that a chip lacks are empty.
type SecureBoot struct {
	// Schemes, the vendor's preferred one first. Only one scheme per unit.
	Schemes         []SchemeSupport
	MinimumRevision Revision // silicon before it has no Secure Boot V2
	// DigestSlots is how many key digests the chip holds, and how many signature
	// blocks of a sector its boot code looks at.
	DigestSlots           int
	DigestIn              DigestPlace
	DigestBytes           int      // how many bytes of a digest are burned
	EnableField           string   // the fuse that turns it on
	RevokeFields          []string // by slot
	AggressiveRevokeField string
	SHA384Field           string // must be burned when the scheme is SignECDSA384
	// WeakECDSA: the vendor says that its verification of ECDSA signatures accepts
	// crafted ones (SECURE_BOOT_V2_ECDSA_INSECURE in ESP-IDF).
	WeakECDSA bool
	// Broken is silicon whose ROM refuses every signature, by the erratum BrokenBy.
	Broken   []Revision
	BrokenBy string
}

// Supports reports whether silicon of this revision verifies a scheme.
func (s SecureBoot) Supports(scheme SignatureScheme, rev Revision) bool {
	return rev >= s.MinimumRevision && slices.ContainsFunc(s.Schemes, func(c SchemeSupport) bool {
		return c.Scheme == scheme && rev >= c.MinimumRevision
	})
}
