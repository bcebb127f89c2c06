package main

import (
	"encoding/json"
	"fmt"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/explain"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/image"
)

type imageExplainCmd struct {
	In             string   `arg:"" help:"The file." placeholder:"FILE"`
	Unit           string   `help:"With --keystore: the unit that it is meant for." placeholder:"MAC"`
	Keystore       string   `help:"The keystore with the unit's key, and a login that may read it: a file, or vault:FILE.yaml." placeholder:"S"`
	Identity       string   `help:"The age identity file that opens a local keystore." placeholder:"FILE"`
	KeyFile        string   `aliases:"keyfile" help:"The unit's key in a file. Without a key little can be said of ciphertext." placeholder:"F"`
	Chip           string   `help:"The chip, if it is not of a keystore." placeholder:"C"`
	PartitionTable string   `help:"The partition table in plaintext, if it is not of a keystore." placeholder:"T"`
	Address        *address `help:"Where it lies in flash, or is meant to lie." placeholder:"A"`
	CryptConfig    *uint8   `name:"flash-crypt-config" help:"With --key-file: FLASH_CRYPT_CONFIG of an ESP32, 0 to 15. Default: 15." placeholder:"N"`
	JSON           bool     `help:"Answer in JSON."`
}

func (c *imageExplainCmd) Run(a *app) error {
	b, err := readLimited(c.In, maxImage)
	if err != nil {
		return usage("FILE: %w", err)
	}
	o, done, err := c.options(a)
	if err != nil {
		return err
	}
	defer done()
	r := explain.Explain(b, o)
	if c.JSON {
		return json.NewEncoder(a.out).Encode(struct {
			File string `json:"file"`
			explain.Report
		}{c.In, r})
	}
	_, _ = fmt.Fprintf(a.out, "%s: %d bytes, the first is 0x%02x\n%s\n", c.In, r.Bytes, r.FirstByte, r.Summary)
	for _, n := range r.Notes {
		_, _ = fmt.Fprintf(a.out, "note: %s\n", n)
	}
	for _, p := range r.Paths {
		at := p.Slot
		if p.Address != nil && at == "" {
			at = fmt.Sprintf("0x%x", *p.Address)
		}
		_, _ = fmt.Fprintf(a.out, "%-23s %-10s %-11s %s\n", p.Way, at, p.Answer, p.Why)
		if p.Message != "" {
			_, _ = fmt.Fprintf(a.out, "%-46s the device prints: %s\n", "", p.Message)
		}
	}
	return nil
}

// options are what the flags say about the unit.
func (c *imageExplainCmd) options(a *app) (o explain.Options, done func(), err error) {
	if c.Address != nil && *c.Address%flashcrypt.BlockSize != 0 {
		return o, nil, usage("--address 0x%x: ciphertext begins at multiples of %d", uint32(*c.Address), flashcrypt.BlockSize)
	}
	o = explain.Options{Revision: image.RevisionUnknown, Address: (*uint32)(c.Address)}
	done = func() {}
	f := unitFlags{Unit: c.Unit, Keystore: c.Keystore, Identity: c.Identity, KeyFile: c.KeyFile, Chip: c.Chip, PartitionTable: c.PartitionTable, FlashCryptConfig: c.CryptConfig}
	if c.Keystore != "" || c.KeyFile != "" {
		if err := f.check(); err != nil {
			return o, done, err
		}
		u, end, err := f.open(a.ctx, nil)
		if err != nil {
			return o, done, err
		}
		defer end() // the cipher has the key too
		if o.Cipher, err = u.Key.Cipher(u.Scheme, u.FlashCryptConfig); err != nil {
			return o, done, err
		}
		o.Chip, o.Revision, o.Scheme, o.Table, o.FlashSize = &u.Chip, u.Revision, u.Scheme, u.Table, u.FlashSize
		o.SecureBootScheme, o.SecureBootDigests = chip.SignatureScheme(u.SecureBootScheme), u.SecureBootDigests
		return o, o.Cipher.Wipe, nil
	}
	if c.Unit != "" || c.Identity != "" || c.CryptConfig != nil {
		return o, done, usage("--unit and --identity go with --keystore, and --flash-crypt-config with --key-file")
	}
	if c.Chip != "" {
		m, err := chip.ByName(c.Chip)
		if err != nil {
			return o, done, usage("--chip: %w", err)
		}
		o.Chip = &m
	}
	if c.PartitionTable != "" {
		if o.Table, err = f.table(); err != nil {
			return o, done, err
		}
	}
	return o, done, nil
}
