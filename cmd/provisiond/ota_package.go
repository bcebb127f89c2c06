package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/ota"
	"github.com/provisiond/provisiond/station/outbox"
)

type otaPackageCmd struct {
	Make   packageMakeCmd   `cmd:"" help:"Encrypt an application for all who share an RSA key, or for one unit."`
	Open   packageOpenCmd   `cmd:"" help:"Decrypt a file as the device does; for tests and quality assurance."`
	Keygen packageKeygenCmd `cmd:"" help:"Make a key pair: RSA-3072, or a unit's HMAC key with its P-256 public key."`
}

// packageMakeCmd reads no private key and no flash key.
type packageMakeCmd struct {
	PublicKey       string `help:"For all who share the private key: an RSA-3072 public key in PEM." placeholder:"F"`
	DevicePublicKey string `help:"For one unit: its P-256 public key in PEM, as the device or the vendor's tool exports it." placeholder:"F"`
	Unit            string `help:"For one unit: its public key is in its key record in --keystore, if its recipe burned an HMAC key." placeholder:"MAC"`
	Keystore        string `help:"The keystore. What it tells about --unit is read, never a key." placeholder:"S"`
	Data            bool   `help:"IN is something else than an application image."`
	JSON            bool   `help:"Answer in JSON."`
	In              string `arg:"" help:"The plaintext." placeholder:"IN"`
	Out             string `arg:"" help:"The file to write." placeholder:"OUT"`
}

func (c *packageMakeCmd) Run(a *app) error {
	to, meta, err := c.recipient(a.ctx)
	if err != nil {
		return err
	}
	b, err := readLimited(c.In, encimg.MaxImage)
	if err != nil {
		return usage("IN: %w", err)
	}
	sum := sha256.Sum256(b)
	info := map[string]any{
		"file": c.Out, "form": string(to.Form()), "bytes": encimg.HeaderSize + len(b),
		"image_bytes": len(b), "image_sha256": hex.EncodeToString(sum[:]),
	}
	if meta != nil {
		info["unit"] = meta.Unit.String()
	}
	if !c.Data {
		if err := describePackaged(c.In, b, meta, info); err != nil {
			return err
		}
	}
	file, err := encimg.Seal(to, b)
	if err != nil {
		return err
	}
	if err := writeWhole(c.Out, file, 0o666); err != nil {
		return err
	}
	whole := sha256.Sum256(file)
	info["sha256"] = hex.EncodeToString(whole[:])
	if c.JSON {
		return json.NewEncoder(a.out).Encode(info)
	}
	who := "for whoever has the private key of " + c.PublicKey
	switch {
	case meta != nil:
		who = "for unit " + meta.Unit.String()
	case c.DevicePublicKey != "":
		who = "for the unit of " + c.DevicePublicKey
	}
	_, err = fmt.Fprintf(a.out, "%s: %s, %s, %d bytes, SHA-256 %x\n", c.Out, to.Form(), who, len(file), whole)
	return err
}

// recipient is who will open the file, and what is known of it if it is a unit of
// the keystore.
func (c *packageMakeCmd) recipient(ctx context.Context) (encimg.Recipient, *keystore.Meta, error) {
	given := 0
	for _, flag := range []string{c.PublicKey, c.DevicePublicKey, c.Unit} {
		if flag != "" {
			given++
		}
	}
	if given != 1 {
		return nil, nil, usage("for whom? Give one of --public-key, --device-public-key and --unit")
	}
	if c.Unit != "" {
		return c.unit(ctx)
	}
	if c.Keystore != "" {
		return nil, nil, usage("--keystore goes with --unit")
	}
	name, path, form := "--public-key", c.PublicKey, encimg.FormRSA
	if c.DevicePublicKey != "" {
		name, path, form = "--device-public-key", c.DevicePublicKey, encimg.FormECIES
	}
	text, err := readLimited(path, 64<<10)
	if err != nil {
		return nil, nil, usage("%s: %w", name, err)
	}
	to, err := encimg.ParseRecipient(text)
	clear(text) // it may be a private key by mistake
	switch {
	case err != nil:
		return nil, nil, usage("%s %s: %w", name, path, err)
	case to.Form() != form && form == encimg.FormRSA:
		return nil, nil, usage("--public-key %s: this is the key of one unit: give it as --device-public-key", path)
	case to.Form() != form:
		return nil, nil, usage("--device-public-key %s: this is an RSA key, which several units share: give it as --public-key", path)
	}
	return to, nil, nil
}

func (c *packageMakeCmd) unit(ctx context.Context) (encimg.Recipient, *keystore.Meta, error) {
	mac, err := chip.ParseMAC(c.Unit)
	if err != nil {
		return nil, nil, usage("--unit: %w", err)
	}
	s, err := openKeystore(ctx, c.Keystore)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = s.Close() }()
	m, err := ota.Find(ctx, s, mac)
	switch {
	case ota.ReasonOf(err) != "":
		return nil, nil, err
	case err != nil:
		return nil, nil, &provision.Failure{Cause: provision.CauseKeystore, Reason: fmt.Sprintf("what is known of unit %s cannot be read", mac), Err: err}
	}
	to, err := ota.PackageRecipient(m)
	return to, &m, err
}

// describePackaged refuses what a device would download in vain. A unit of the
// keystore is known well enough to look at chip, revision and signature too.
func describePackaged(name string, b []byte, unit *keystore.Meta, info map[string]any) error {
	m, err := ota.ParseImage(bytes.Clone(b))
	if err != nil {
		return fmt.Errorf("IN %s: %w; --data if it is no application", name, err)
	}
	app := m.App()
	info["project"], info["version"], info["secure_version"] = app.ProjectName, app.Version, app.SecureVersion
	if c, err := chip.ByID(m.Chip()); err == nil {
		info["chip"] = c.Name
	}
	if unit == nil {
		return nil
	}
	u, err := ota.PublicUnit(*unit)
	if err != nil {
		return err
	}
	return u.CheckImage(m)
}

type packageOpenCmd struct {
	PrivateKey string `help:"The private key in PEM, mode 0600: RSA-3072, or the P-256 key that a unit derives." placeholder:"F"`
	HMACKey    string `name:"hmac-key" help:"The 32 bytes of a unit's HMAC key, mode 0600." placeholder:"F"`
	JSON       bool   `help:"Answer in JSON."`
	In         string `arg:"" help:"The esp_encrypted_img file." placeholder:"IN"`
	Out        string `arg:"" help:"The plaintext to write." placeholder:"OUT"`
}

func (c *packageOpenCmd) Run(a *app) error {
	as, err := c.identity()
	if err != nil {
		return err
	}
	file, err := readLimited(c.In, encimg.HeaderSize+encimg.MaxImage)
	if err != nil {
		return usage("IN: %w", err)
	}
	b, err := encimg.Open(as, file)
	if err != nil {
		return usage("IN %s: %w", c.In, err)
	}
	if err := writeWhole(c.Out, b, 0o600); err != nil { // what somebody encrypted is for its owner only
		return err
	}
	sum := sha256.Sum256(b)
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{"file": c.Out, "form": string(as.Form()), "bytes": len(b), "sha256": hex.EncodeToString(sum[:])})
	}
	_, err = fmt.Fprintf(a.out, "%s: %d bytes, SHA-256 %x\n", c.Out, len(b), sum)
	return err
}

func (c *packageOpenCmd) identity() (encimg.Identity, error) {
	if (c.PrivateKey == "") == (c.HMACKey == "") {
		return nil, usage("with which key? Give one of --private-key and --hmac-key")
	}
	if c.HMACKey != "" {
		key, err := outbox.ReadSecret(c.HMACKey, encimg.HMACKeySize)
		defer clear(key)
		if err != nil {
			return nil, usage("--hmac-key: %w", err)
		}
		as, err := encimg.NewECIESIdentity(key)
		if err != nil {
			return nil, usage("--hmac-key %s: %w", c.HMACKey, err)
		}
		return as, nil
	}
	text, err := outbox.ReadSecret(c.PrivateKey, 64<<10)
	defer clear(text)
	if err != nil {
		return nil, usage("--private-key: %w", err)
	}
	as, err := encimg.ParseIdentity(text)
	if err != nil {
		return nil, usage("--private-key %s: %w", c.PrivateKey, err)
	}
	return as, nil
}

type packageKeygenCmd struct {
	Form    string `help:"rsa-3072, or ecies-p256 for boards whose HMAC key provisiond does not derive." enum:"rsa-3072,ecies-p256" required:"" placeholder:"FORM"`
	Private string `help:"The file for the private key, made with mode 0600: PEM, or the 32 bytes of the HMAC key." required:"" placeholder:"F"`
	Public  string `help:"The file for the public key in PEM." required:"" placeholder:"F"`
	JSON    bool   `help:"Answer in JSON."`
}

func (c *packageKeygenCmd) Run(a *app) error {
	generate := makeRSAKey
	if c.Form == string(encimg.FormECIES) {
		generate = makeHMACKey
	}
	private, public, err := generate()
	defer clear(private)
	if err != nil {
		return err
	}
	if err := writeKeyPair([2]string{"--private", "--public"}, c.Private, private, c.Public, public); err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{"form": c.Form, "private": c.Private, "public": c.Public})
	}
	_, err = fmt.Fprintf(a.out, "made %s and %s (%s). Whoever has the first one can read the updates; those who make updates need the second one only.\n", c.Private, c.Public, c.Form)
	return err
}

// writeKeyPair makes two new files, or none; names are those of their flags.
func writeKeyPair(names [2]string, private string, secret []byte, public string, open []byte) error {
	if err := writeNewAs(names[0], private, secret, 0o600); err != nil {
		return err
	}
	if err := writeNewAs(names[1], public, open, 0o644); err != nil {
		_ = os.Remove(private) // made a moment ago: nobody has its other half
		return err
	}
	return nil
}

func makeRSAKey() (private, public []byte, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		return nil, nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	defer clear(secret)
	open, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: open}), nil
}

func makeHMACKey() (private, public []byte, err error) {
	private = make([]byte, encimg.HMACKeySize)
	for {
		_, _ = rand.Read(private) // never fails
		xy, err := encimg.PublicKey(private)
		if errors.Is(err, encimg.ErrUnusableKey) {
			continue
		}
		if err != nil {
			return private, nil, err
		}
		public, err = encimg.MarshalPublicKey(xy[:])
		return private, public, err
	}
}
