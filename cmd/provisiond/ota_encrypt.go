package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/ota"
)

// otaExit is the exit code of a refusal.
func otaExit(r ota.Reason) int {
	switch r {
	case ota.ReasonQuarantined:
		return provision.ExitQuarantined
	case ota.ReasonManifestKey, ota.ReasonManifestFields:
		return provision.ExitUsage
	}
	return provision.ExitRefused
}

// unitFlags say for which unit something is: one of a keystore, or one whose key
// is in a file.
type unitFlags struct {
	Unit             string   `help:"The unit, by its base MAC." placeholder:"MAC"`
	Keystore         string   `help:"The keystore with the unit's key, and a login that may read it: a file, or vault:FILE.yaml." placeholder:"S"`
	Identity         string   `help:"The age identity file that opens a local keystore." placeholder:"FILE"`
	KeyFile          string   `aliases:"keyfile" help:"The unit's key in a file of mode 0600, instead of a keystore." placeholder:"F"`
	Chip             string   `help:"With --key-file: the chip." placeholder:"C"`
	PartitionTable   string   `help:"With --key-file: the partition table, as it is flashed (plaintext)." placeholder:"T"`
	Address          *address `help:"With --key-file and without a partition table: the flash address of the slot." placeholder:"A"`
	FlashCryptConfig *uint8   `help:"With --key-file: FLASH_CRYPT_CONFIG of an ESP32, 0 to 15. Default: 15." placeholder:"N"`
}

// check tells which flags do not go together.
func (f unitFlags) check() error {
	switch {
	case (f.Keystore == "") == (f.KeyFile == ""):
		return usage("give --keystore with --unit, or --key-file with --chip: exactly one of the two says where the key is")
	case f.Keystore != "" && (f.Chip != "" || f.PartitionTable != "" || f.Address != nil || f.FlashCryptConfig != nil):
		return usage("--chip, --partition-table, --address and --flash-crypt-config are for --key-file: with --keystore the unit's record says it")
	case f.Keystore != "" && f.Unit == "":
		return usage("--unit is missing: name the unit by its MAC")
	case f.KeyFile != "" && f.Identity != "":
		return usage("--identity opens a local keystore: it does not go with --key-file")
	case f.KeyFile != "" && f.Chip == "":
		return usage("--chip is missing: it decides the scheme")
	case f.KeyFile != "" && f.PartitionTable != "" && f.Address != nil:
		return usage("--partition-table and --address do not go together: the first says where the slots are")
	}
	return nil
}

// mac is the unit's; without --unit it is zero.
func (f unitFlags) mac() (chip.MAC, error) {
	if f.Unit == "" {
		return chip.MAC{}, nil
	}
	mac, err := chip.ParseMAC(f.Unit)
	switch {
	case err != nil:
		return mac, usage("--unit: %w", err)
	case mac == chip.MAC{} || mac[0]&1 != 0:
		return mac, usage("--unit: %s is not the address of one unit", mac)
	}
	return mac, nil
}

// fromFile makes the unit of a key file. Without a partition table it has none.
func (f unitFlags) fromFile() (*ota.Unit, error) {
	mac, err := f.mac()
	if err != nil {
		return nil, err
	}
	m, err := chip.ByName(f.Chip)
	if err != nil {
		return nil, usage("--chip: %w", err)
	}
	config, err := cryptConfig(m, f.FlashCryptConfig)
	if err != nil {
		return nil, err
	}
	raw, err := readKeyFile(f.KeyFile)
	if err != nil {
		return nil, usage("--key-file: %w", err)
	}
	scheme, err := m.SchemeFor(len(raw))
	if err != nil {
		clear(raw)
		return nil, usage("--key-file %s: %w", f.KeyFile, err)
	}
	key, err := keystore.KeyFromBytes(raw)
	if err != nil {
		return nil, usage("--key-file %s: %w", f.KeyFile, err)
	}
	u := &ota.Unit{
		MAC: mac, Chip: m, Revision: image.RevisionUnknown, Scheme: scheme, FlashCryptConfig: config,
		FlashSize: m.MaxFlash, Table: partition.New(), Key: key, Fingerprint: key.Fingerprint(),
	}
	if f.PartitionTable != "" {
		if u.Table, err = f.table(); err != nil {
			u.Wipe()
			return nil, err
		}
	}
	return u, nil
}

// table reads --partition-table.
func (f unitFlags) table() (*partition.Table, error) {
	b, err := readLimited(f.PartitionTable, partition.SectorSize)
	if err != nil {
		return nil, usage("--partition-table: %w", err)
	}
	t, err := partition.Parse(b)
	if err != nil {
		return nil, usage("--partition-table %s: %w", f.PartitionTable, err)
	}
	return t, nil
}

// cryptConfig is FLASH_CRYPT_CONFIG: of an ESP32 15 without a flag, of other
// chips 0.
func cryptConfig(m chip.Model, flag *uint8) (uint8, error) {
	switch {
	case m.Scheme != chip.SchemeESP32 && flag != nil:
		return 0, usage("--flash-crypt-config: the %s has no FLASH_CRYPT_CONFIG", m.Title)
	case m.Scheme != chip.SchemeESP32:
		return 0, nil
	case flag == nil:
		return 0xF, nil
	case *flag > 0xF:
		return 0, usage("--flash-crypt-config: %d is not in 0 to 15", *flag)
	}
	return *flag, nil
}

// open gives the unit, and what ends the use of the keystore; check comes first. keys shares the
// keystore's login with signing keys in the same Vault.
func (f unitFlags) open(ctx context.Context, keys *signers) (*ota.Unit, func(), error) {
	if f.KeyFile != "" {
		u, err := f.fromFile()
		if err != nil {
			return nil, nil, err
		}
		return u, u.Wipe, nil
	}
	mac, err := f.mac()
	if err != nil {
		return nil, nil, err
	}
	s, err := openKeystoreWith(ctx, f.Keystore, f.Identity)
	if err != nil {
		return nil, nil, err
	}
	u, err := ota.Lookup(ctx, s, mac)
	if err != nil {
		_ = s.Close()
		return nil, nil, unitFailure(err)
	}
	if v, ok := s.(vaultUse); ok && keys != nil {
		keys.share(v.path, v.Transit())
	}
	return u, func() { u.Wipe(); _ = s.Close() }, nil
}

// unitFailure tells a keystore that does not answer from a unit that is refused.
func unitFailure(err error) error {
	if ota.ReasonOf(err) != "" || errors.Is(err, context.Canceled) {
		return err
	}
	return &provision.Failure{Cause: provision.CauseKeystore, Reason: "the unit's key cannot be read", Err: err}
}

type otaEncryptCmd struct {
	unitFlags
	Slot          []string `help:"The slot: ota_0, ota_1, … May be repeated." placeholder:"SLOT"`
	AllSlots      bool     `help:"Every slot of the partition table."`
	In            string   `help:"The application image, in plaintext." required:"" placeholder:"F"`
	Out           string   `help:"The folder for the files; made if it is missing." required:"" placeholder:"DIR"`
	ManifestKey   string   `help:"Sign a manifest per slot: a PEM file of mode 0600, credential:NAME, vault-transit:FILE.yaml[#KEY[/vN]], or a PKCS #11 URI." placeholder:"K"`
	Release       string   `help:"The name of the release in manifests." placeholder:"NAME"`
	SecureVersion uint32   `help:"The secure_version that the unit has, if it is known: an older image is refused." placeholder:"N"`
	JSON          bool     `help:"Answer in JSON."`
}

// otaFile is a slot's part of the answer.
type otaFile struct {
	Slot     string  `json:"slot,omitempty"`
	Address  string  `json:"address"`
	Length   int64   `json:"length"`
	SHA256   string  `json:"sha256_cipher"`
	File     string  `json:"file"`
	Manifest *string `json:"manifest,omitempty"`
}

func (c *otaEncryptCmd) Run(a *app) (err error) {
	if err := c.checkFlags(); err != nil {
		return err
	}
	file, err := readLimited(c.In, maxImage)
	if err != nil {
		return usage("--in: %w", err)
	}
	img, err := ota.ParseImage(file)
	if err != nil {
		return fmt.Errorf("%s: %w", c.In, err)
	}
	keys := new(signers)
	defer func() { err = errors.Join(err, keys.Close()) }()
	unit, done, err := c.open(a.ctx, keys)
	if err != nil {
		return err
	}
	defer done()
	updates, err := c.prepare(unit, img)
	defer func() {
		for _, u := range updates {
			u.Ciphertext.Wipe()
		}
	}()
	if err != nil {
		return err
	}
	var signer ota.Signer
	if c.ManifestKey != "" {
		if signer, err = keys.manifest(a.ctx, "--manifest-key", c.ManifestKey); err != nil {
			return err
		}
	}
	files, err := c.write(a, updates, signer)
	if err != nil {
		return err
	}
	return c.tell(a, unit, img, signer, files)
}

func (c *otaEncryptCmd) checkFlags() error {
	byAddress := c.KeyFile != "" && c.Address != nil
	switch {
	case c.KeyFile != "" && c.Address == nil && c.PartitionTable == "":
		return usage("--partition-table or --address is missing: ciphertext is right for one address only")
	case byAddress && (len(c.Slot) > 0 || c.AllSlots):
		return usage("--slot and --all-slots need --partition-table: --address alone does not say where slots are")
	case byAddress && c.ManifestKey != "":
		return usage("a manifest names a slot: give --partition-table and --slot in place of --address")
	case c.ManifestKey != "" && c.Unit == "":
		return usage("a manifest names its unit: give --unit")
	case c.Release != "" && c.ManifestKey == "":
		return usage("--release is a line of a manifest: give --manifest-key")
	case !byAddress && (len(c.Slot) > 0) == c.AllSlots:
		return usage("give --slot ota_0 (may be repeated), or --all-slots")
	}
	for i, s := range c.Slot {
		if slices.Contains(c.Slot[:i], s) {
			return usage("--slot %s is there twice", s)
		}
	}
	return c.check()
}

// prepare checks the image for every slot before anything is written.
func (c *otaEncryptCmd) prepare(u *ota.Unit, img *ota.Image) ([]*ota.Update, error) {
	if c.Address != nil {
		at := uint32(*c.Address)
		if at%partition.AppAlign != 0 || at >= u.Chip.MaxFlash {
			return nil, usage("--address 0x%x: an application begins at a multiple of 0x%x, on the %s below 0x%x; `provisiond image encrypt` takes any file for any address", at, partition.AppAlign, u.Chip.Title, u.Chip.MaxFlash)
		}
		// Where it ends nobody says.
		slot := partition.Entry{Type: partition.TypeApp, Offset: at, Size: u.Chip.MaxFlash - at}
		if err := u.Check(img, slot, ota.Known{SecureVersion: c.SecureVersion}); err != nil {
			return nil, err
		}
		ct, err := u.Encrypt(slot, img.Plain())
		if err != nil {
			return nil, err
		}
		return []*ota.Update{{Unit: u, Slot: slot, Image: img, Ciphertext: ct}}, nil
	}
	names := c.Slot
	if c.AllSlots {
		for _, e := range u.Slots() {
			names = append(names, e.SubtypeName())
		}
		if len(names) == 0 {
			_, err := u.Slot("ota_0") // says that there are none
			return nil, err
		}
	}
	var updates []*ota.Update
	for _, name := range names {
		up, err := ota.Prepare(u, img, name, ota.Known{SecureVersion: c.SecureVersion})
		if err != nil {
			return updates, err
		}
		updates = append(updates, up)
	}
	return updates, nil
}

// base begins the names of an update's files.
func (c *otaEncryptCmd) base(up *ota.Update) string {
	name := fmt.Sprintf("0x%08x", up.Slot.Offset)
	if c.Address == nil {
		name = up.Slot.SubtypeName()
	}
	if up.Unit.MAC != (chip.MAC{}) {
		name = strings.ReplaceAll(up.Unit.MAC.String(), ":", "") + "-" + name
	}
	return filepath.Join(c.Out, name)
}

// write makes all files, and shows them only when all are whole.
func (c *otaEncryptCmd) write(a *app, updates []*ota.Update, signer ota.Signer) ([]otaFile, error) {
	if err := os.MkdirAll(c.Out, 0o750); err != nil {
		return nil, usage("--out: %w", err)
	}
	var outs []*wholeFile
	defer func() {
		for _, o := range outs {
			o.drop()
		}
	}()
	add := func(path string, fill func(o *wholeFile) error) error {
		if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
			return usage("--out: %s is there and no plain file", path)
		}
		o, err := newWholeFile(path, 0o666)
		if err != nil {
			return usage("--out: %w", err)
		}
		outs = append(outs, o)
		if err = fill(o); err == nil {
			err = o.finish()
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		return nil
	}
	bars := newProgress(a.errOut, true, "ota")
	defer bars.clear()
	observe := bars.observe("ota")
	var files []otaFile
	for i, up := range updates {
		base := c.base(up)
		f := otaFile{Address: fmt.Sprintf("0x%08x", up.Slot.Offset), Length: up.Ciphertext.Size(), File: base + ".bin"}
		if c.Address == nil {
			f.Slot = up.Slot.SubtypeName()
		}
		hash := sha256.New()
		err := add(f.File, func(o *wholeFile) error {
			return up.Ciphertext.WriteTo(a.ctx, io.MultiWriter(hash, o), func(done int64) {
				observe(provision.Event{Unit: up.Unit.MAC, Step: "encrypt", Index: i + 1, Count: len(updates), Done: done, Total: f.Length, Text: f.Slot})
			})
		})
		if err != nil {
			return nil, err
		}
		sum := [sha256.Size]byte(hash.Sum(nil))
		f.SHA256 = hex.EncodeToString(sum[:])
		if signer != nil {
			m, err := up.Manifest(a.ctx, ota.ManifestOptions{Release: c.Release, CipherSHA256: &sum}, signer)
			if err != nil {
				return nil, err
			}
			text, err := m.MarshalText()
			if err != nil {
				return nil, err
			}
			name := base + ".manifest"
			f.Manifest = &name
			if err := add(name, func(o *wholeFile) error { _, err := o.Write(text); return err }); err != nil {
				return nil, err
			}
		}
		files = append(files, f)
	}
	if err := a.ctx.Err(); err != nil {
		return nil, err
	}
	for _, o := range outs {
		if err := o.show(); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func (c *otaEncryptCmd) tell(a *app, u *ota.Unit, img *ota.Image, signer ota.Signer, files []otaFile) error {
	app, sum := img.App(), img.SHA256()
	answer := map[string]any{
		"chip": u.Chip.Name, "scheme": u.Scheme, "key_fingerprint": u.Fingerprint, "files": files,
		"image": map[string]any{
			"file": c.In, "length": len(img.Plain()), "sha256_plain": hex.EncodeToString(sum[:]),
			"project": app.ProjectName, "version": app.Version, "secure_version": app.SecureVersion, "signed": img.Signed(),
		},
	}
	if u.MAC != (chip.MAC{}) {
		answer["unit"] = u.MAC
	}
	if signer != nil {
		id, err := ota.SignerID(signer.Public())
		if err != nil {
			return err
		}
		answer["signer"] = hex.EncodeToString(id[:])
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(answer)
	}
	who := "key " + u.Fingerprint.String()[:16] + "…"
	if u.MAC != (chip.MAC{}) {
		who = "unit " + u.MAC.String() + ", " + who
	}
	_, _ = fmt.Fprintf(a.out, "%s %q %q for %s, %s\n", c.In, app.ProjectName, app.Version, u.Chip.Title, who)
	for _, f := range files {
		at := "address " + f.Address
		if f.Slot != "" {
			at = f.Slot + ", " + at
		}
		_, _ = fmt.Fprintf(a.out, "%s: %s, %d bytes, SHA-256 %s\n", f.File, at, f.Length, f.SHA256)
		if f.Manifest != nil {
			_, _ = fmt.Fprintf(a.out, "%s: signed\n", *f.Manifest)
		}
	}
	_, err := fmt.Fprintln(a.out, "for esp_partition_write_raw into this slot of this unit; esp_ota_write refuses it")
	return err
}

// manifest gives a signer of manifests. A key in Vault without a name is the one
// that the OTA role may use.
func (s *signers) manifest(ctx context.Context, flag, key string) (ota.Signer, error) {
	if file, ok := strings.CutPrefix(key, transitPrefix); ok && !strings.Contains(file, "#") {
		cfg, err := vault.FromFlag(vault.Prefix + file)
		if err != nil {
			return nil, usage("%s: %w", flag, err)
		}
		key += "#" + vault.ManifestKey(cfg.Mount)
	}
	with, err := s.open(ctx, flag, key)
	if err != nil {
		return nil, err
	}
	signer, err := ota.NewSigner(with)
	if err != nil {
		return nil, usage("%s: %w", flag, err)
	}
	return signer, nil
}

// share makes keys of the Vault of a configuration file use a login that is there.
func (s *signers) share(path string, t *vault.Transit) {
	if s.vaults == nil {
		s.vaults = map[string]*vault.Transit{}
	}
	s.vaults[path] = t
}

type otaKeyCmd struct {
	Out  string `arg:"" help:"The file for the private key (PEM, mode 0600); it must not exist. The public key is written beside it, with .pub." placeholder:"FILE"`
	JSON bool   `help:"Answer in JSON."`
}

// Run makes a key pair.
func (c *otaKeyCmd) Run(a *app) error {
	private, public, err := ota.GenerateKey()
	if err != nil {
		return err
	}
	defer clear(private)
	text, err := ota.MarshalPublicKey(public)
	if err != nil {
		return err
	}
	pub := c.Out + ".pub"
	if err := writeKeyPair([2]string{"FILE", "FILE.pub"}, c.Out, private, pub, text); err != nil {
		return err
	}
	return c.tell(a, public, pub)
}

func (c *otaKeyCmd) tell(a *app, public *ecdsa.PublicKey, pub string) error {
	id, err := ota.SignerID(public)
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{"key": c.Out, "public_key": pub, "signer": hex.EncodeToString(id[:])})
	}
	_, err = fmt.Fprintf(a.out, "made %s: it signs manifests; whoever has it and a unit's key can update the unit\nmade %s: it goes into the firmware; signer %x\n", c.Out, pub, id)
	return err
}
