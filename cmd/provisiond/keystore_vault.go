package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision"
)

// vaultInitFlags are what `keystore init` takes for a Vault.
type vaultInitFlags struct {
	Vault         string   `help:"Set up the Vault that this configuration file names: mount, policies, AppRoles. Run again, it changes nothing." placeholder:"FILE.yaml"`
	Station       []string `help:"With --vault: an AppRole for a station, bound to addresses. May be repeated." placeholder:"NAME=CIDR,CIDR" sep:"none"`
	OTACidr       []string `name:"ota-cidr" help:"With --vault: an AppRole for the OTA server, bound to these addresses." placeholder:"CIDR"`
	OTAPublicCidr []string `name:"ota-public-cidr" help:"With --vault: an AppRole for an OTA server that reads no key, bound to these addresses." placeholder:"CIDR"`
	AuditorCidr   []string `help:"With --vault: an AppRole for auditors, bound to these addresses." placeholder:"CIDR"`

	CustodianCidr []string `help:"With --vault: an AppRole for the custodian of the escrow, bound to these addresses." placeholder:"CIDR"`
	JournalKeys   bool     `help:"With --vault: a signing key per station in the transit engine, for journals with --signing-key vault-transit:…."`
	ManifestKey   bool     `help:"With --vault: a key in the transit engine with which the OTA server signs manifests, for --manifest-key vault-transit:…."`
}

func (f vaultInitFlags) used() bool {
	return f.Vault != "" || f.JournalKeys || f.ManifestKey || len(f.Station)+len(f.OTACidr)+len(f.OTAPublicCidr)+len(f.AuditorCidr)+len(f.CustodianCidr) > 0
}

func (f vaultInitFlags) run(a *app, testStore, asJSON bool) error {
	if f.Vault == "" {
		return usage("--station, --ota-cidr, --ota-public-cidr, --auditor-cidr, --custodian-cidr, --journal-keys and --manifest-key are for --vault FILE.yaml")
	}
	o := vault.SetupOptions{TestStore: testStore}
	for _, s := range f.Station {
		name, cidrs, ok := strings.Cut(s, "=")
		if !ok || name == "" || cidrs == "" {
			return usage("--station %s: write NAME=CIDR, for example line-1=10.0.7.0/28", s)
		}
		o.Stations = append(o.Stations, vault.AppRoleOptions{Name: name, CIDRs: strings.Split(cidrs, ",")})
	}
	if len(f.OTACidr) > 0 {
		o.OTA = &vault.AppRoleOptions{CIDRs: f.OTACidr}
	}
	if len(f.OTAPublicCidr) > 0 {
		o.OTAPublic = &vault.AppRoleOptions{CIDRs: f.OTAPublicCidr}
	}
	if len(f.AuditorCidr) > 0 {
		o.Auditor = &vault.AppRoleOptions{CIDRs: f.AuditorCidr}
	}
	if len(f.CustodianCidr) > 0 {
		o.Custodian = &vault.AppRoleOptions{CIDRs: f.CustodianCidr}
	}
	o.JournalKeys, o.ManifestKey = f.JournalKeys, f.ManifestKey
	if o.JournalKeys && len(o.Stations) == 0 {
		return usage("--journal-keys are those of stations: name them with --station")
	}
	admin, err := openAdmin(a, f.Vault)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }()
	rep, err := admin.Setup(a.ctx, o)
	if err != nil {
		return vaultFailure(err)
	}
	if asJSON {
		return json.NewEncoder(a.out).Encode(map[string]any{"changes": nonNil(rep.Changes), "warnings": nonNil(rep.Warnings)})
	}
	for _, c := range rep.Changes {
		_, _ = fmt.Fprintln(a.out, "changed:", c)
	}
	if len(rep.Changes) == 0 {
		_, _ = fmt.Fprintln(a.out, "nothing to change")
	}
	for _, w := range rep.Warnings {
		_, _ = fmt.Fprintln(a.out, "warning:", w)
	}
	return nil
}

func nonNil(s []string) []string { return append([]string{}, s...) }

func openAdmin(a *app, file string) (*vault.Admin, error) {
	cfg, err := vault.ReadConfig(strings.TrimPrefix(file, vault.Prefix))
	if err != nil {
		return nil, &usageError{err}
	}
	admin, err := vault.OpenAdmin(a.ctx, cfg)
	if err != nil {
		return nil, vaultFailure(err)
	}
	return admin, nil
}

func vaultFailure(err error) error {
	return &provision.Failure{Cause: provision.CauseKeystore, Reason: "the Vault did not do its part", Err: err}
}

type keystorePolicyCmd struct {
	Role    string `arg:"" help:"station, rework, ota, ota-public, auditor, custodian or admin." enum:"station,rework,ota,ota-public,auditor,custodian,admin"`
	Mount   string `help:"The KV v2 mount." default:"provisiond"`
	Station string `help:"For role station: its name." placeholder:"NAME"`
	Unit    string `help:"For role rework: the unit that the ticket is for." placeholder:"MAC"`
}

func (c *keystorePolicyCmd) Run(a *app) error {
	p := vault.PolicyParams{Mount: c.Mount, Station: c.Station}
	if c.Unit != "" {
		mac, err := chip.ParseMAC(c.Unit)
		if err != nil {
			return usage("--unit: %w", err)
		}
		p.Unit = mac
	}
	text, err := vault.Policy(vault.Role(c.Role), p)
	if err != nil {
		return &usageError{err}
	}
	_, err = fmt.Fprint(a.out, text)
	return err
}

type keystoreSecretIDCmd struct {
	Vault   string        `arg:"" help:"The admin's configuration file." placeholder:"FILE.yaml"`
	Role    string        `help:"station, ota, ota-public, auditor or custodian." enum:"station,ota,ota-public,auditor,custodian" default:"station"`
	Station string        `help:"For role station: its name." placeholder:"NAME"`
	TTL     time.Duration `name:"ttl" help:"How long it may be on its way." default:"1h"`
	Out     string        `help:"Where to put the role id (OUT.role-id) and the wrapped secret id (OUT.secret-id, mode 0600)." required:"" placeholder:"OUT"`
}

func (c *keystoreSecretIDCmd) Run(a *app) error {
	admin, err := openAdmin(a, c.Vault)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }()
	cred, err := admin.SecretID(a.ctx, vault.Role(c.Role), c.Station, c.TTL)
	if err != nil {
		return vaultFailure(err)
	}
	for suffix, text := range map[string]string{".role-id": cred.RoleID, ".secret-id": cred.SecretID} {
		if err := writeSecretFile(c.Out+suffix, text); err != nil {
			return &usageError{err}
		}
	}
	_, err = fmt.Fprintf(a.out, "made %s.role-id and %s.secret-id; the second works once, within %s\n", c.Out, c.Out, c.TTL)
	return err
}

type keystoreTicketCmd struct {
	Vault string        `arg:"" help:"The admin's configuration file." placeholder:"FILE.yaml"`
	Unit  string        `help:"The unit to rework." required:"" placeholder:"MAC"`
	TTL   time.Duration `name:"ttl" help:"How long the ticket is good." default:"1h"`
	Out   string        `help:"Where to put the token (mode 0600)." required:"" placeholder:"OUT"`
}

func (c *keystoreTicketCmd) Run(a *app) error {
	mac, err := chip.ParseMAC(c.Unit)
	if err != nil {
		return usage("--unit: %w", err)
	}
	admin, err := openAdmin(a, c.Vault)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }()
	token, err := admin.Ticket(a.ctx, mac, c.TTL)
	if err != nil {
		return vaultFailure(err)
	}
	if err := writeSecretFile(c.Out, token); err != nil {
		return &usageError{err}
	}
	_, err = fmt.Fprintf(a.out, "made %s: it reads the key of unit %s and nothing else, for %s\n", c.Out, mac, c.TTL)
	return err
}

// writeSecretFile makes a new file that only its owner reads.
func writeSecretFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
