package main

import (
	"context"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/secureboot"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
)

// maxImage bounds an image file that is signed or verified.
const maxImage = 64 << 20

// chipFlags say what is to verify an image.
type chipFlags struct {
	Chip     string `help:"The chip. Default: the one that the image is for." placeholder:"C"`
	Revision string `help:"Its revision, for schemes that not all silicon has. Default: the newest." placeholder:"V"`
}

// model is the chip that the flags or the image name.
func (c chipFlags) model(file []byte) (chip.Model, chip.Revision, error) {
	rev := image.RevisionUnknown
	if c.Revision != "" {
		var err error
		if rev, err = chip.ParseRevision(c.Revision); err != nil {
			return chip.Model{}, rev, usage("--revision: %w", err)
		}
	}
	if c.Chip != "" {
		m, err := chip.ByName(c.Chip)
		if err != nil {
			return m, rev, usage("--chip: %w", err)
		}
		return m, rev, nil
	}
	m, err := image.Parse(file)
	if err != nil {
		return chip.Model{}, rev, err
	}
	model, err := chip.ByID(m.Header.ChipID)
	return model, rev, err
}

type imageSignCmd struct {
	Key    []string `help:"A private key: a PEM file of mode 0600, credential:NAME, vault-transit:FILE.yaml#KEY, or a pkcs11: URI. Up to three." required:"" sep:"none" placeholder:"K"`
	In     string   `help:"The image to sign." required:"" placeholder:"F"`
	Out    string   `help:"The signed image." required:"" placeholder:"F"`
	Append bool     `help:"Add to the signatures that the image has."`
	JSON   bool     `help:"Answer in JSON."`
	chipFlags
}

func (c *imageSignCmd) Run(a *app) (err error) {
	file, err := readLimited(c.In, maxImage)
	if err != nil {
		return usage("--in: %w", err)
	}
	model, rev, err := c.model(file)
	if err != nil {
		return refuseImage(c.In, file, err)
	}
	var open signers
	defer func() { err = errors.Join(err, open.Close()) }()
	var with []crypto.Signer
	for _, k := range c.Key {
		s, err := open.open(a.ctx, "--key", k)
		if err != nil {
			return err
		}
		with = append(with, s)
	}
	out, err := secureboot.Sign(a.ctx, file, secureboot.Options{Append: c.Append, Chip: &model, Revision: rev}, with...)
	switch {
	case errors.Is(err, keystore.ErrUnavailable), errors.Is(err, context.Canceled):
		return err
	case err != nil:
		return refuseImage(c.In, file, err)
	}
	report, err := secureboot.Verify(out)
	if err != nil {
		return err
	}
	if err := writeWhole(c.Out, out, 0o666); err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(signatureJSON(c.Out, report, model, nil))
	}
	_, err = fmt.Fprintf(a.out, "%s: 0x%x bytes signed, %s\n", c.Out, report.Signed, signatureCount(report))
	if err == nil {
		err = printSignatures(a.out, report, model, nil)
	}
	return err
}

type imageVerifyCmd struct {
	In     string   `arg:"" help:"The image." placeholder:"IN"`
	Key    []string `help:"A public key (PEM) that is trusted. One of those given must have signed." sep:"none" placeholder:"PUB"`
	Digest []string `help:"The key digest of a trusted key: 64 hex digits, or a file of 32 bytes." sep:"none" placeholder:"D"`
	JSON   bool     `help:"Answer in JSON."`
	chipFlags
}

func (c *imageVerifyCmd) Run(a *app) error {
	trusted, err := c.trusted()
	if err != nil {
		return err
	}
	file, err := readLimited(c.In, maxImage)
	if err != nil {
		return usage("IN: %w", err)
	}
	report, model, err := c.verify(file, trusted)
	if err != nil {
		return refuseImage(c.In, file, err)
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(signatureJSON(c.In, report, model, trusted))
	}
	_, err = fmt.Fprintf(a.out, "%s: good: 0x%x bytes signed, %s\n", c.In, report.Signed, signatureCount(report))
	if err == nil {
		err = printSignatures(a.out, report, model, trusted)
	}
	if err == nil && len(trusted) == 0 {
		_, err = fmt.Fprintln(a.out, "whose keys these are was not compared: give --key or --digest")
	}
	return err
}

func (c *imageVerifyCmd) verify(file []byte, trusted []secureboot.KeyDigest) (secureboot.Report, chip.Model, error) {
	fail := func(err error) (secureboot.Report, chip.Model, error) { return secureboot.Report{}, chip.Model{}, err }
	model, rev, err := c.model(file)
	if err != nil {
		return fail(err)
	}
	m, err := image.Parse(file)
	if err != nil {
		return fail(err)
	}
	r, err := secureboot.Verify(file)
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(m.CheckFor(model, rev), r.CheckFor(model, rev)); err != nil {
		return fail(err)
	}
	if len(trusted) > 0 && !slices.ContainsFunc(trusted, r.SignedBy) {
		return fail(fmt.Errorf("it is signed by none of the given keys: its key digests are %s", digests(r)))
	}
	return r, model, nil
}

// trusted are the digests of --key and --digest.
func (c *imageVerifyCmd) trusted() ([]secureboot.KeyDigest, error) {
	var all []secureboot.KeyDigest
	for _, name := range c.Key {
		text, err := readLimited(name, maxKeyFile)
		if err != nil {
			return nil, usage("--key: %w", err)
		}
		k, err := secureboot.ParsePublicKey(text)
		clear(text) // should it be a private one
		if err != nil {
			return nil, usage("--key %s: %w", name, err)
		}
		all = append(all, k.Digest())
	}
	for _, d := range c.Digest {
		k, err := secureboot.ParseKeyDigest(d)
		if err != nil {
			b, ferr := readLimited(d, int64(len(k)))
			if ferr != nil || len(b) != len(k) {
				return nil, usage("--digest %s: it is neither 64 hex digits nor a file of 32 bytes", d)
			}
			k = secureboot.KeyDigest(b)
		}
		all = append(all, k)
	}
	return all, nil
}

// refuseImage is the exit code of an image that is not (to be) signed as asked.
func refuseImage(name string, file []byte, err error) error {
	var u *usageError
	if errors.As(err, &u) {
		return err
	}
	if image.LooksEncrypted(file) {
		err = fmt.Errorf("%w; its bytes look like ciphertext: an image is signed first and then encrypted", err)
	}
	return &codeError{provision.ExitRefused, fmt.Errorf("%s: %w", name, err)}
}

func signatureCount(r secureboot.Report) string {
	if n := len(r.Signatures); n != 1 {
		return fmt.Sprintf("%d signatures, %s", n, r.Scheme)
	}
	return fmt.Sprintf("1 signature, %s", r.Scheme)
}

func digests(r secureboot.Report) string {
	text := ""
	for i, s := range r.Signatures {
		if i > 0 {
			text += ", "
		}
		text += s.Key.Digest().String()
	}
	return text
}

func printSignatures(w io.Writer, r secureboot.Report, model chip.Model, trusted []secureboot.KeyDigest) error {
	for i, s := range r.Signatures {
		mark := ""
		if slices.Contains(trusted, s.Key.Digest()) {
			mark = "  trusted"
		}
		if _, err := fmt.Fprintf(w, "  signature %d at 0x%06x  key digest %s%s\n", i, s.Offset, s.Key.Digest(), mark); err != nil {
			return err
		}
	}
	if !r.Weak(model) {
		return nil
	}
	_, err := fmt.Fprintf(w, "warning: the vendor calls the %s's verification of ECDSA insecure: it accepts some crafted signatures (docs/secureboot.md)\n", model.Title)
	return err
}

func signatureJSON(name string, r secureboot.Report, model chip.Model, trusted []secureboot.KeyDigest) map[string]any {
	rows := []map[string]any{}
	for i, s := range r.Signatures {
		row := map[string]any{"block": i, "offset": s.Offset, "key_digest": s.Key.Digest()}
		if trusted != nil {
			row["trusted"] = slices.Contains(trusted, s.Key.Digest())
		}
		rows = append(rows, row)
	}
	return map[string]any{
		"file": name, "scheme": r.Scheme, "signed_bytes": r.Signed, "weak": r.Weak(model), "image_digest": hex.EncodeToString(r.ImageDigest), "signatures": rows,
	}
}

// signatureInfo describes the signatures of an image, also of one that is not
// well signed: that is what somebody looks at who wants to know why.
func signatureInfo(file []byte, info map[string]any, w io.Writer) {
	r, err := secureboot.Verify(file)
	if err != nil {
		info["signature_error"] = err.Error()
		_, _ = fmt.Fprintf(w, "not well signed: %s\n", err)
		return
	}
	model, _, _ := chipFlags{}.model(file) // a chip that is not known has no warning
	signed := signatureJSON("", r, model, nil)
	delete(signed, "file") // info has it
	info["signed"] = signed
	_, _ = fmt.Fprintf(w, "signed: %s over 0x%x bytes\n", signatureCount(r), r.Signed)
	_ = printSignatures(w, r, model, nil) // into a buffer
}
