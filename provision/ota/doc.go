// Package ota owns updates for units whose flash is encrypted with a key that
// the host made: for one unit and one slot, the exact bytes to write raw
// (esp_partition_write_raw), and a signed manifest that says what they are.
//
// A board in release mode takes plaintext through esp_ota_write and encrypts it
// itself; ciphertext given to esp_ota_write is refused ("invalid magic byte",
// esp-facts G.1; ESP-IDF app_update/esp_ota_ops.c). This package is for the
// other way, with the image encrypted from the server to the flash. Ciphertext
// is right for one key and one flash address only, so ota_0 and ota_1 need
// different bytes (esp-facts G.2).
//
// # What it promises
//
// A unit gets bytes only after every check that its own boot code will make and
// that can be made here: chip, revision limits, checksum and hash, size of the
// slot, signature when the unit has Secure Boot, secure_version when the unit's
// is known. What fails is a *Refusal, whose Reason a program can read.
//
// A Manifest has one text. What ParseManifest reads, MarshalText writes again
// byte for byte, and the signature covers all of it. docs/ota.md has the format.
//
// # Use
//
//	unit, err := ota.Lookup(ctx, store, mac)      // keystore.Store, any of them
//	image, err := ota.ParseImage(app)
//	update, err := ota.Prepare(unit, image, "ota_1", ota.Known{})
//	manifest, err := update.Manifest(ctx, ota.ManifestOptions{Release: "1.4.2"}, signer)
//	io.Copy(w, update.Ciphertext.NewReader())
//	update.Ciphertext.Wipe(); unit.Wipe()
//
// The exported API carries nothing from internal/: it is made for backends in
// other modules. Keys are opaque (keystore.Key).
package ota
