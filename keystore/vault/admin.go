package vault

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// Admin sets a keystore up. Its login needs the admin policy, or more.
type Admin struct{ c *client }

// OpenAdmin logs in. The mount need not exist yet.
func OpenAdmin(ctx context.Context, cfg Config) (*Admin, error) {
	c, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	if _, err := c.session.use(ctx); err != nil {
		c.close()
		return nil, err
	}
	return &Admin{c}, nil
}

// Close ends the connection.
func (a *Admin) Close() error { a.c.close(); return nil }

// SetupOptions say what Setup makes beside the mount.
type SetupOptions struct {
	TestStore bool // takes simulated units, and only those
	// Stations get a policy and an AppRole each.
	Stations []AppRoleOptions
	// OTA, OTAPublic, Auditor and Custodian get an AppRole if they are given.
	OTA, OTAPublic, Auditor, Custodian *AppRoleOptions
	// JournalKeys makes a key per station in the transit engine, which signs the
	// checkpoints of its journal.
	JournalKeys bool
	// ManifestKey makes the key in the transit engine with which the OTA backend
	// signs its manifests.
	ManifestKey bool
}

// AppRoleOptions bind an AppRole.
type AppRoleOptions struct {
	Name   string   // of the station; unused for the other roles
	CIDRs  []string // from where it may log in and be used; at least one
	Period time.Duration
}

// The limits of a login.
const (
	// DefaultPeriod is how long a token lives without a renewal.
	DefaultPeriod = time.Hour
	// SecretIDTTL is how long an unwrapped secret id waits for its login.
	SecretIDTTL = 10 * time.Minute
)

// SetupReport says what Setup changed and what it did not like.
type SetupReport struct {
	Changes  []string
	Warnings []string
}

// Setup makes what is missing: the mount with cas_required, the description of
// the store, policies and AppRoles. Run again it changes nothing. It never
// removes anything, and refuses a mount of another kind.
func (a *Admin) Setup(ctx context.Context, o SetupOptions) (SetupReport, error) {
	var rep SetupReport
	end, err := a.end(ctx)
	if err != nil {
		return rep, err
	}
	for _, step := range []func(context.Context, *api.Client, SetupOptions, *SetupReport) error{
		a.setupAudit, a.setupMount, a.setupStore, a.setupPolicies, a.setupAppRoles, a.setupTickets,
	} {
		if err := step(ctx, end, o, &rep); err != nil {
			return rep, fmt.Errorf("keystore/vault: setup: %w", err)
		}
	}
	if err := a.setupTransit(ctx, o, &rep); err != nil {
		return rep, fmt.Errorf("keystore/vault: setup: %w", err)
	}
	return rep, nil
}

func (a *Admin) end(ctx context.Context) (*api.Client, error) {
	if _, err := a.c.session.use(ctx); err != nil {
		return nil, err
	}
	// The first server that answers as one that is unsealed.
	for range a.c.ends {
		end, n := a.c.end()
		if r := a.c.sendTo(ctx, end, http.MethodGet, "auth/token/lookup-self", nil); r.verdict == good || r.verdict == refused {
			return end, nil
		}
		a.c.next(n)
	}
	return nil, fmt.Errorf("%w: none of %v takes requests: look with: provisiond keystore health", keystore.ErrUnavailable, a.c.cfg.Addresses)
}

func (a *Admin) setupAudit(ctx context.Context, end *api.Client, _ SetupOptions, rep *SetupReport) error {
	devices, err := end.Sys().ListAuditWithContext(ctx)
	switch {
	case err != nil:
		rep.Warnings = append(rep.Warnings, fmt.Sprintf("the audit devices cannot be listed (%v): make sure that there are two, so that a full one does not stop the line", err))
	case len(devices) == 0:
		rep.Warnings = append(rep.Warnings, "there is no audit device: who read which key is not recorded: vault audit enable file file_path=…")
	case len(devices) == 1:
		rep.Warnings = append(rep.Warnings, "there is one audit device: when it fails, every request fails: enable a second one")
	}
	return nil
}

func (a *Admin) setupMount(ctx context.Context, end *api.Client, _ SetupOptions, rep *SetupReport) error {
	mount := a.c.cfg.Mount
	mounts, err := end.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return err
	}
	switch m, ok := mounts[mount+"/"]; {
	case !ok:
		err := end.Sys().MountWithContext(ctx, mount, &api.MountInput{
			Type: "kv", Description: "provisiond key records", Options: map[string]string{"version": "2"},
		})
		if err != nil {
			return fmt.Errorf("mount %s: %w", mount, err)
		}
		rep.Changes = append(rep.Changes, "mounted kv version 2 at "+mount)
	case m.Type != "kv" || m.Options["version"] != "2":
		return fmt.Errorf("at %s there is %s version %s already: choose another mount", mount, m.Type, m.Options["version"])
	}
	// A new mount answers 400 for a moment, until it has made itself ready.
	p := a.c.patience(ctx)
	for {
		secret, err := end.Logical().ReadWithContext(ctx, mount+"/config")
		if err == nil && secret != nil {
			return a.setupConfig(ctx, end, secret.Data, rep)
		}
		if !p.next(ctx) {
			return fmt.Errorf("mount %s does not become ready: %w", mount, err)
		}
	}
}

func (a *Admin) setupConfig(ctx context.Context, end *api.Client, have map[string]any, rep *SetupReport) error {
	if d, _ := have["delete_version_after"].(string); d != "" && d != "0s" {
		return fmt.Errorf("mount %s deletes entries after %s: that would lose keys: vault write %s/config delete_version_after=0s", a.c.cfg.Mount, d, a.c.cfg.Mount)
	}
	if have["cas_required"] == true {
		return nil
	}
	if _, err := end.Logical().WriteWithContext(ctx, a.c.cfg.Mount+"/config", map[string]any{"cas_required": true}); err != nil {
		return err
	}
	rep.Changes = append(rep.Changes, "set cas_required on "+a.c.cfg.Mount)
	return nil
}

func (a *Admin) setupStore(ctx context.Context, _ *api.Client, o SetupOptions, rep *SetupReport) error {
	body, err := encode(storeJSON{Schema: schemaVersion, ID: strings.ToLower(rand.Text()), TestStore: o.TestStore})
	if err != nil {
		return err
	}
	read := func(ctx context.Context) (info storeJSON, ok bool, err error) {
		e, ok, err := a.c.get(ctx, "data", storePath)
		if err == nil && ok {
			err = strict(e.Data, &info)
		}
		return info, ok, err
	}
	info, ok, err := read(ctx)
	if err == nil && !ok {
		how, _, cerr := a.c.create(ctx, storePath, body, func(ctx context.Context) (bool, error) {
			_, ok, err := read(ctx)
			return ok, err
		})
		if cerr != nil {
			return cerr
		}
		if how == storedNow {
			rep.Changes = append(rep.Changes, "made the description of the store")
		}
		info, ok, err = read(ctx)
	}
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("%s/data/%s cannot be written: the token's policy does not allow it", a.c.cfg.Mount, storePath)
	case info.TestStore != o.TestStore:
		return fmt.Errorf("the store at %s is for simulated units: %v: choose another mount", a.c.cfg.Mount, info.TestStore)
	}
	return nil
}

func (a *Admin) setupPolicies(ctx context.Context, end *api.Client, o SetupOptions, rep *SetupReport) error {
	type want struct {
		role Role
		p    PolicyParams
	}
	wants := []want{{RoleOTA, PolicyParams{}}, {RoleOTAPublic, PolicyParams{}}, {RoleAuditor, PolicyParams{}}, {RoleCustodian, PolicyParams{}}, {RoleAdmin, PolicyParams{}}}
	for _, s := range o.Stations {
		wants = append(wants, want{RoleStation, PolicyParams{Station: s.Name}})
	}
	for _, w := range wants {
		w.p.Mount = a.c.cfg.Mount
		if err := putPolicy(ctx, end, w.role, w.p, rep); err != nil {
			return err
		}
	}
	return nil
}

func putPolicy(ctx context.Context, end *api.Client, role Role, p PolicyParams, rep *SetupReport) error {
	text, err := Policy(role, p)
	if err != nil {
		return err
	}
	name := PolicyName(role, p)
	have, err := end.Sys().GetPolicyWithContext(ctx, name)
	if err != nil || have == text {
		return err
	}
	if err := end.Sys().PutPolicyWithContext(ctx, name, text); err != nil {
		return err
	}
	rep.Changes = append(rep.Changes, "wrote policy "+name)
	return nil
}

func (a *Admin) setupAppRoles(ctx context.Context, end *api.Client, o SetupOptions, rep *SetupReport) error {
	type want struct {
		role Role
		o    AppRoleOptions
	}
	var wants []want
	for _, s := range o.Stations {
		wants = append(wants, want{RoleStation, s})
	}
	if o.OTA != nil {
		wants = append(wants, want{RoleOTA, *o.OTA})
	}
	if o.OTAPublic != nil {
		wants = append(wants, want{RoleOTAPublic, *o.OTAPublic})
	}
	if o.Auditor != nil {
		wants = append(wants, want{RoleAuditor, *o.Auditor})
	}
	if o.Custodian != nil {
		wants = append(wants, want{RoleCustodian, *o.Custodian})
	}
	if len(wants) == 0 {
		return nil
	}
	methods, err := end.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return err
	}
	if _, ok := methods["approle/"]; !ok {
		if err := end.Sys().EnableAuthWithOptionsWithContext(ctx, "approle", &api.EnableAuthOptions{Type: "approle"}); err != nil {
			return err
		}
		rep.Changes = append(rep.Changes, "enabled auth/approle")
	}
	for _, w := range wants {
		name := PolicyName(w.role, PolicyParams{Mount: a.c.cfg.Mount, Station: w.o.Name})
		if err := putAppRole(ctx, end, name, w.o, rep); err != nil {
			return err
		}
	}
	return nil
}

func putAppRole(ctx context.Context, end *api.Client, name string, o AppRoleOptions, rep *SetupReport) error {
	if len(o.CIDRs) == 0 {
		return fmt.Errorf("AppRole %s: from which addresses may it log in? Give at least one CIDR, for example 10.1.2.3/32", name)
	}
	for _, cidr := range o.CIDRs {
		if _, err := netip.ParsePrefix(cidr); err != nil {
			return fmt.Errorf("AppRole %s: %q is not a CIDR: write 10.1.2.3/32", name, cidr)
		}
	}
	if o.Period == 0 {
		o.Period = DefaultPeriod
	}
	want := map[string]any{
		"bind_secret_id": true, "secret_id_num_uses": 1, "secret_id_ttl": int(SecretIDTTL.Seconds()),
		"secret_id_bound_cidrs": o.CIDRs, "token_bound_cidrs": o.CIDRs,
		"token_policies": []string{name}, "token_no_default_policy": true, "token_type": "service",
		"token_period": int(o.Period.Seconds()),
	}
	path := "auth/approle/role/" + name
	secret, err := end.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return err
	}
	if secret != nil && sameFields(secret.Data, want) {
		return nil
	}
	if _, err := end.Logical().WriteWithContext(ctx, path, want); err != nil {
		return err
	}
	rep.Changes = append(rep.Changes, "wrote AppRole "+name)
	return nil
}

// sameFields compares what is wanted with what is there, as JSON. Vault drops /32
// from single addresses of token_bound_cidrs.
func sameFields(have, want map[string]any) bool {
	norm := func(v any) string {
		b, _ := json.Marshal(v)
		return strings.ReplaceAll(string(b), `/32"`, `"`)
	}
	for k, v := range want {
		if norm(have[k]) != norm(v) {
			return false
		}
	}
	return true
}

func (a *Admin) setupTickets(ctx context.Context, end *api.Client, _ SetupOptions, rep *SetupReport) error {
	prefix := policyPrefix(a.c.cfg.Mount) + "-rework"
	want := map[string]any{
		"allowed_policies_glob": []string{prefix + "-*"}, "orphan": true, "renewable": false,
		"token_no_default_policy": true, "token_explicit_max_ttl": int(MaxTicket.Seconds()), "token_type": "service",
	}
	secret, err := end.Logical().ReadWithContext(ctx, "auth/token/roles/"+prefix)
	if err != nil {
		return err
	}
	if secret != nil && sameFields(secret.Data, want) {
		return nil
	}
	if _, err := end.Logical().WriteWithContext(ctx, "auth/token/roles/"+prefix, want); err != nil {
		return err
	}
	rep.Changes = append(rep.Changes, "wrote token role "+prefix)
	return nil
}

// MaxTicket is the longest life of a rework ticket.
const MaxTicket = 8 * time.Hour

// Ticket makes a token that reads one unit, for rework. It cannot be renewed.
func (a *Admin) Ticket(ctx context.Context, unit chip.MAC, ttl time.Duration) (token string, err error) {
	if ttl <= 0 || ttl > MaxTicket {
		return "", fmt.Errorf("keystore/vault: a ticket lives for at most %s", MaxTicket)
	}
	end, err := a.end(ctx)
	if err != nil {
		return "", err
	}
	p := PolicyParams{Mount: a.c.cfg.Mount, Unit: unit}
	if err := putPolicy(ctx, end, RoleRework, p, &SetupReport{}); err != nil {
		return "", fmt.Errorf("keystore/vault: ticket: %w", err)
	}
	secret, err := end.Logical().WriteWithContext(ctx, "auth/token/create/"+policyPrefix(a.c.cfg.Mount)+"-rework", map[string]any{
		"policies": []string{PolicyName(RoleRework, p)}, "ttl": ttl.String(), "display_name": "provisiond-rework",
	})
	if err != nil {
		return "", fmt.Errorf("keystore/vault: ticket: %w", err)
	}
	return secret.TokenID()
}

// Credentials are what an AppRole login needs.
type Credentials struct {
	RoleID string
	// SecretID is the wrapping token: it gives the secret id once, within its TTL.
	SecretID string
}

// SecretID makes the login of a role: of a station, or with an empty station of
// RoleOTA, RoleOTAPublic, RoleAuditor and RoleCustodian. What it returns is not the secret id but a token that
// gives it away once: if it was opened on its way, the station cannot log in.
func (a *Admin) SecretID(ctx context.Context, role Role, station string, wrapTTL time.Duration) (Credentials, error) {
	if !slices.Contains([]Role{RoleStation, RoleOTA, RoleOTAPublic, RoleAuditor, RoleCustodian}, role) {
		return Credentials{}, fmt.Errorf("keystore/vault: role %s has no AppRole", role)
	}
	end, err := a.end(ctx)
	if err != nil {
		return Credentials{}, err
	}
	path := "auth/approle/role/" + PolicyName(role, PolicyParams{Mount: a.c.cfg.Mount, Station: station})
	id, err := end.Logical().ReadWithContext(ctx, path+"/role-id")
	if err != nil {
		return Credentials{}, fmt.Errorf("keystore/vault: secret id: %w", err)
	}
	if id == nil {
		return Credentials{}, fmt.Errorf("keystore/vault: there is no %s: make it with: provisiond keystore init --vault", path)
	}
	wrapping, err := end.CloneWithHeaders()
	if err != nil {
		return Credentials{}, err
	}
	wrapping.SetToken(end.Token())
	wrapping.SetWrappingLookupFunc(func(string, string) string { return wrapTTL.String() })
	secret, err := wrapping.Logical().WriteWithContext(ctx, path+"/secret-id", nil)
	if err != nil {
		return Credentials{}, fmt.Errorf("keystore/vault: secret id: %w", err)
	}
	roleID, _ := id.Data["role_id"].(string)
	if secret == nil || secret.WrapInfo == nil || roleID == "" {
		return Credentials{}, errors.New("keystore/vault: secret id: the answer is not wrapped")
	}
	return Credentials{RoleID: roleID, SecretID: secret.WrapInfo.Token}, nil
}
