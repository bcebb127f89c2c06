package recipe

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/secureboot"
)

// SecureBoot says whose signatures the units' ROM trusts.
type SecureBoot struct {
	Scheme chip.SignatureScheme
	Keys   []string // paths of public keys in PEM, in the order of their digest slots
	// AggressiveRevoke burns the fuse that revokes a key for good when one signature
	// by it does not verify.
	AggressiveRevoke bool
	// AcceptWeakECDSA: somebody knows that the vendor calls the chip's verification of
	// ECDSA signatures insecure. The certificate says so.
	AcceptWeakECDSA bool
}

var secureBootKeys = []string{"scheme", "keys", "aggressive_revoke", "accept_weak_ecdsa"}

const maxKeyFile = 64 << 10

// oldestFor is the first silicon that verifies the recipe's signatures.
func (r *Recipe) oldestFor() chip.Revision {
	if r.SecureBoot == nil {
		return 0
	}
	sb := r.model.SecureBoot
	oldest := sb.MinimumRevision
	for _, s := range sb.Schemes {
		if s.Scheme == r.SecureBoot.Scheme {
			oldest = max(oldest, s.MinimumRevision)
		}
	}
	return oldest
}

// secureBoot reads whose signatures are trusted. The keys are read with the template.
func (d *decoder) secureBoot(n *yaml.Node, knownChip bool, r *Recipe) {
	const fix = "write secure_boot: {scheme: rsa3072, keys: [signing-key.pub.pem]}"
	v, ok := d.mapping(n, "secure_boot", secureBootKeys, fix)
	if !ok {
		return
	}
	s := &SecureBoot{}
	sb := r.model.SecureBoot
	if v["scheme"] == nil {
		d.add(n.Line, "secure_boot.scheme", "is missing", fix)
	} else {
		s.Scheme = d.scheme(v["scheme"], knownChip, r)
	}
	if v["keys"] == nil {
		d.add(n.Line, "secure_boot.keys", "is missing", fix)
	} else {
		for i, item := range d.sequence(v["keys"], "secure_boot.keys", fix) {
			path := indexPath("secure_boot.keys", i)
			d.lines[path] = item.Line
			if p, ok := d.filePath(item, path, "write the path of a public key in PEM, relative to the recipe"); ok {
				s.Keys = append(s.Keys, p)
			}
		}
		if knownChip && sb.DigestSlots > 0 && len(s.Keys) > sb.DigestSlots {
			d.add(v["keys"].Line, "secure_boot.keys", fmt.Sprintf("%d keys are more than the %d that %s has room for", len(s.Keys), sb.DigestSlots, r.model.Title), "keep the ones that sign")
		}
	}
	if a := v["aggressive_revoke"]; a != nil {
		s.AggressiveRevoke = d.boolean(a, "secure_boot.aggressive_revoke")
		if s.AggressiveRevoke && knownChip && sb.AggressiveRevokeField == "" {
			d.add(a.Line, "secure_boot.aggressive_revoke", r.model.Title+" has no such fuse", "remove it")
		}
	}
	if knownChip && sb.DigestIn == chip.DigestInKey0High && r.Scheme() != r.model.Scheme {
		line := cmp.Or(d.lines["flash_encryption"], n.Line)
		d.add(line, "flash_encryption", fmt.Sprintf("a key of %s fills the only key block of %s, which has to hold the digest too", r.Scheme(), r.model.Title),
			"write flash_encryption: "+string(r.model.Scheme)+" or leave it out")
	}
	weak := knownChip && sb.WeakECDSA && s.Scheme.ECDSA()
	if a := v["accept_weak_ecdsa"]; a != nil {
		s.AcceptWeakECDSA = d.boolean(a, "secure_boot.accept_weak_ecdsa")
		if s.AcceptWeakECDSA && knownChip && s.Scheme != "" && !weak {
			d.add(a.Line, "secure_boot.accept_weak_ecdsa", fmt.Sprintf("nothing is known against %s on %s", s.Scheme, r.model.Title), "remove it")
		}
	}
	if weak && !s.AcceptWeakECDSA {
		d.add(n.Line, "secure_boot.scheme", fmt.Sprintf("the vendor calls ECDSA for booting insecure on %s (SECURE_BOOT_V2_ECDSA_INSECURE in ESP-IDF): crafted signatures may be taken", r.model.Title),
			"use rsa3072 where the chip has it, or write accept_weak_ecdsa: true and have it in every certificate")
	}
	r.SecureBoot = s
	if oldest := r.oldestFor(); knownChip && s.Scheme != "" && r.MaxChipRevision < oldest {
		d.add(d.lines["max_chip_revision"], "max_chip_revision",
			fmt.Sprintf("%s verifies no %s before %s, so no chip fits both", r.model.Title, s.Scheme, oldest), fmt.Sprintf("allow %s or newer", oldest))
	}
}

// scheme reads a signature scheme that the chip verifies.
func (d *decoder) scheme(n *yaml.Node, knownChip bool, r *Recipe) chip.SignatureScheme {
	var names []string
	for _, s := range r.model.SecureBoot.Schemes {
		names = append(names, string(s.Scheme))
	}
	if !knownChip {
		names = []string{string(chip.SignRSA3072), string(chip.SignECDSA256), string(chip.SignECDSA384), string(chip.SignECDSA192)}
	}
	fix := "write one of " + strings.Join(names, ", ")
	text, ok := d.word(n, "secure_boot.scheme", fix)
	switch {
	case !ok:
		return ""
	case !slices.Contains(names, text) && knownChip:
		d.add(n.Line, "secure_boot.scheme", fmt.Sprintf("%s verifies no signatures of scheme %s", r.model.Title, quote(text)), fix)
		return ""
	case !slices.Contains(names, text):
		d.add(n.Line, "secure_boot.scheme", quote(text)+" is not a signature scheme", fix)
		return ""
	}
	return chip.SignatureScheme(text)
}

// loadKeys reads the public keys of secure_boot. The error is Errors.
func (r *Recipe) loadKeys() ([]secureboot.PublicKey, error) {
	if r.SecureBoot == nil {
		return nil, nil
	}
	var keys []secureboot.PublicKey
	var errs Errors
	for i, name := range r.SecureBoot.Keys {
		path := r.resolve(name)
		bad := func(problem, fix string) {
			errs = append(errs, r.FieldError(indexPath("secure_boot.keys", i), path+": "+problem, fix))
		}
		b, err := readLimited(osOpener{}, path, maxKeyFile)
		if err != nil {
			bad(err.Error(), "give the path of a public key in PEM, relative to the recipe")
			continue
		}
		k, err := secureboot.ParsePublicKey(b)
		clear(b) // somebody may have named a private one
		switch {
		case err != nil:
			bad(err.Error(), "write the public key with `openssl pkey -pubout`")
		case k.Scheme() != r.SecureBoot.Scheme:
			bad(fmt.Sprintf("is a key of %s, and the recipe says %s", k.Scheme(), r.SecureBoot.Scheme), "all keys of a unit are of one scheme")
		case slices.ContainsFunc(keys, func(o secureboot.PublicKey) bool { return o.Digest() == k.Digest() }):
			bad("is the same key as another one of the list", "keep one of them")
		default:
			keys = append(keys, k)
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return keys, nil
}

// flashEncryption reads the scheme of flash encryption, where a chip has several.
func (d *decoder) flashEncryption(n *yaml.Node, knownChip bool, r *Recipe) {
	var names []string
	for _, s := range r.model.Schemes {
		if hasScheme(r.model, s) {
			names = append(names, string(s))
		}
	}
	if !knownChip {
		names = []string{string(chip.SchemeESP32), string(chip.SchemeXTS128), string(chip.SchemeXTS256), string(chip.SchemeXTSDerived)}
	}
	fix := "write one of " + strings.Join(names, ", ")
	text, ok := d.word(n, "flash_encryption", fix)
	switch {
	case !ok:
	case !slices.Contains(names, text):
		d.add(n.Line, "flash_encryption", quote(text)+" is no flash encryption of this chip", fix)
	default:
		r.FlashEncryption = chip.Scheme(text)
	}
}
