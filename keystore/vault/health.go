package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/provisiond/provisiond/keystore"
)

// HealthState says whether custody can be taken, and if not, why.
type HealthState string

// The states, from good to bad.
const (
	Ready         HealthState = "ready"
	ClockSkew     HealthState = "clock-skew" // usable; times in records are wrong
	TokenInvalid  HealthState = "token-invalid"
	NoKeystore    HealthState = "no-keystore"
	RateLimited   HealthState = "rate-limited"
	AuditFailing  HealthState = "audit-failing"
	NoQuorum      HealthState = "no-quorum"
	NoLeader      HealthState = "no-leader"
	Sealed        HealthState = "sealed"
	Uninitialised HealthState = "uninitialised"
	Unreachable   HealthState = "unreachable"
)

// maxSkew is how far our clock and the server's may be apart.
const maxSkew = 30 * time.Second

// Health is what a look at the servers gave.
type Health struct {
	State   HealthState
	Words   string // what it means and what to do, for people
	Address string // of the server that was asked last
	Skew    time.Duration
}

// Usable reports whether custody can be taken.
func (h Health) Usable() bool { return h.State == Ready || h.State == ClockSkew }

// Err is nil if custody can be taken, and wraps keystore.ErrUnavailable if not.
func (h Health) Err() error {
	if h.Usable() {
		return nil
	}
	return fmt.Errorf("%w: %s: %s", keystore.ErrUnavailable, h.State, h.Words)
}

func (h Health) String() string { return string(h.State) + ": " + h.Words }

// Health looks at every configured server until one can take custody: is it
// unsealed, does it know a leader, does it take our token, does it read, and
// does it write? The write is a renewal of our own token, which goes through the
// same storage. sys/health alone does not tell: it stays 200 without a quorum.
func (s *Store) Health(ctx context.Context) Health {
	if err := s.check(ctx); err != nil {
		return Health{State: Unreachable, Words: err.Error()}
	}
	return s.c.health(ctx)
}

// CheckHealth looks at the servers of a configuration without opening a store,
// which fails on most of what Health can tell.
func CheckHealth(ctx context.Context, cfg Config) (Health, error) {
	c, err := connect(cfg)
	if err != nil {
		return Health{}, err
	}
	defer c.close()
	return c.health(ctx), nil
}

func (c *client) health(ctx context.Context) Health {
	var worst Health
	for i, end := range c.ends {
		h := c.healthOf(ctx, end)
		h.Address = end.Address()
		if h.Usable() {
			return h
		}
		if i == 0 || severity(h.State) < severity(worst.State) {
			worst = h // of several that cannot, the one that is nearest to it
		}
	}
	return worst
}

func severity(s HealthState) int {
	for i, o := range []HealthState{Ready, ClockSkew, TokenInvalid, NoKeystore, RateLimited, AuditFailing, NoQuorum, NoLeader, Sealed, Uninitialised, Unreachable} {
		if s == o {
			return i
		}
	}
	return -1
}

func (c *client) healthOf(ctx context.Context, end *api.Client) Health {
	body, err := c.sysHealth(ctx, end)
	if err != nil {
		return Health{State: Unreachable, Words: fmt.Sprintf("%s does not answer: %v: check the network, the server and its certificate", end.Address(), plain(err))}
	}
	h := Health{}
	if body.Time != 0 {
		h.Skew = time.Since(time.Unix(body.Time, 0)).Round(time.Second)
	}
	set := func(s HealthState, format string, args ...any) Health {
		h.State, h.Words = s, fmt.Sprintf(format, args...)
		return h
	}
	switch {
	case !body.Initialised:
		return set(Uninitialised, "%s is not initialised: vault operator init", end.Address())
	case body.Sealed:
		return set(Sealed, "%s is sealed: unseal it (vault operator unseal)", end.Address())
	}
	if body.Standby {
		r := c.sendTo(ctx, end, http.MethodGet, "sys/leader", nil)
		var l struct {
			Address string `json:"leader_address"`
		}
		if r.verdict != good || json.Unmarshal(r.body, &l) != nil || l.Address == "" {
			return set(NoLeader, "%s is a standby and knows no leader: start or unseal the other nodes", end.Address())
		}
	}
	return c.healthOfToken(ctx, end, set, h.Skew)
}

func (c *client) healthOfToken(ctx context.Context, end *api.Client, set func(HealthState, string, ...any) Health, skew time.Duration) Health {
	token, err := c.session.use(ctx)
	if err != nil {
		return set(loginState(err), "there is no login: %v", err)
	}
	// A renewal or spoiling in between changes the client's token, so ask with ours.
	own, err := end.CloneWithHeaders()
	if err != nil {
		return set(Unreachable, "%v", err)
	}
	own.SetToken(token)
	switch r := c.sendTo(ctx, own, http.MethodGet, c.cfg.Mount+"/data/"+storePath, nil); {
	case r.verdict == badToken:
		c.session.spoil(token)
		return set(TokenInvalid, "the token expired or was revoked: the next use logs in again; if that fails, put a new secret id or token in place")
	case r.status == http.StatusTooManyRequests:
		return set(RateLimited, "the server's rate limit is reached: raise the quota or wait")
	case r.verdict == notFound, r.status == http.StatusNotFound:
		return set(NoKeystore, "there is no keystore in mount %s: make it with: provisiond keystore init --vault", c.cfg.Mount)
	case r.verdict == refused:
		return set(TokenInvalid, "the token may not read %s/data/%s: give it the policy that `provisiond keystore policy ROLE` prints", c.cfg.Mount, storePath)
	case r.status >= 500:
		return set(AuditFailing, "%s is unsealed and fails every request (%v): its audit device is full or gone, or its storage is: make room on its disk, or add a second audit device", end.Address(), r.err)
	case r.verdict != good:
		return set(Unreachable, "%v", r.err)
	}
	if r := c.sendTo(ctx, own, http.MethodPut, "auth/token/renew-self", []byte("{}")); r.verdict == unknown || r.verdict == notNow {
		return set(NoQuorum, "%s reads and cannot write (%v): most nodes of the cluster are away, or its disk is full: start them, or make room", end.Address(), r.err)
	}
	if skew.Abs() > maxSkew {
		return set(ClockSkew, "this clock and that of %s are %s apart: set them by NTP; records made now have a wrong time", end.Address(), skew)
	}
	return set(Ready, "%s takes keys", end.Address())
}

// loginState tells a login that was refused from one that the server could not
// do: a login is a write, and fails as every write does.
func loginState(err error) HealthState {
	for part, state := range map[string]HealthState{
		noQuorumText: NoQuorum, serverFailedText: AuditFailing, rateLimitText: RateLimited, noAnswerText: Unreachable,
	} {
		if strings.Contains(err.Error(), part) {
			return state
		}
	}
	return TokenInvalid
}

type sysHealth struct {
	Initialised bool  `json:"initialized"`
	Sealed      bool  `json:"sealed"`
	Standby     bool  `json:"standby"`
	Time        int64 `json:"server_time_utc"`
}

// sysHealth asks directly: the client library reads the status codes of this
// endpoint as errors.
func (c *client) sysHealth(ctx context.Context, end *api.Client) (h sysHealth, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.cfg.Timeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, end.Address()+"/v1/sys/health", http.NoBody)
	if err != nil {
		return h, err
	}
	resp, err := c.web.Do(req)
	if err != nil {
		return h, err
	}
	defer func() { _ = resp.Body.Close() }()
	err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&h)
	return h, err
}
