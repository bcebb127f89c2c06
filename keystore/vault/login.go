package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// connect makes a client with its session.
func connect(cfg Config) (*client, error) {
	cfg.fill()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	c.session = newSession(c.login, c.renewSelf, func(token string) {
		for _, e := range c.ends {
			e.SetToken(token)
		}
	})
	return c, nil
}

func (c *client) close() {
	c.session.close()
	c.http.CloseIdleConnections()
}

// auth is the part of a login's or renewal's answer that counts.
type auth struct {
	Auth struct {
		Token     string `json:"client_token"`
		Lease     int64  `json:"lease_duration"`
		Renewable bool   `json:"renewable"`
	} `json:"auth"`
}

func (a auth) grant() grant {
	return grant{token: a.Auth.Token, ttl: time.Duration(a.Auth.Lease) * time.Second, renewable: a.Auth.Renewable}
}

// ask sends one request with another token than the session's ("" for none),
// again while it is for sure that it was not done. What uses nothing up (reads,
// logins with a certificate) is sent again after an unknown outcome too.
func (c *client) ask(ctx context.Context, token, method, path string, body any) (reply, error) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return reply{}, err
		}
	}
	p := c.patience(ctx)
	for {
		end, n := c.end()
		own, err := end.CloneWithHeaders()
		if err != nil {
			return reply{}, err
		}
		own.SetToken(token)
		r := c.sendTo(ctx, own, method, path, b)
		harmless := method == http.MethodGet || path == "auth/"+c.certMount()+"/login"
		if r.verdict != notNow && (r.verdict != unknown || !harmless) {
			return r, nil
		}
		c.next(n)
		if !p.next(ctx) {
			return r, r.err
		}
	}
}

func (c *client) certMount() string {
	if l := c.cfg.Login.Cert; l != nil {
		return l.Mount
	}
	return ""
}

func (c *client) login(ctx context.Context) (grant, error) {
	switch l := c.cfg.Login; {
	case l.AppRole != nil:
		return c.loginAppRole(ctx, l.AppRole)
	case l.Cert != nil:
		return c.loginCert(ctx, l.Cert)
	default:
		token, err := c.cfg.readSecret(l.TokenFile)
		if err != nil {
			return grant{}, err
		}
		g, err := c.lookup(ctx, token)
		if err != nil {
			return grant{}, loginError("the token in %s: %w: put a new one there", l.TokenFile, err)
		}
		return g, nil
	}
}

// lookup asks what a token is good for.
func (c *client) lookup(ctx context.Context, token string) (grant, error) {
	r, err := c.ask(ctx, token, http.MethodGet, "auth/token/lookup-self", nil)
	if err == nil {
		err = r.err
	}
	if err != nil {
		return grant{}, err
	}
	var a struct {
		Data struct {
			TTL       int64 `json:"ttl"`
			Renewable bool  `json:"renewable"`
		} `json:"data"`
	}
	if err := json.Unmarshal(r.body, &a); err != nil {
		return grant{}, errors.New("lookup-self: the answer is not one of Vault")
	}
	return grant{token: token, ttl: time.Duration(a.Data.TTL) * time.Second, renewable: a.Data.Renewable}, nil
}

func (c *client) renewSelf(ctx context.Context, token string) (grant, error) {
	end, n := c.end()
	own, err := end.CloneWithHeaders()
	if err != nil {
		return grant{}, err
	}
	own.SetToken(token)
	r := c.sendTo(ctx, own, http.MethodPut, "auth/token/renew-self", []byte("{}"))
	switch r.verdict {
	case good:
		var a auth
		if err := json.Unmarshal(r.body, &a); err != nil {
			return grant{}, err
		}
		return a.grant(), nil
	case badToken, refused:
		return grant{}, fmt.Errorf("%w: %w", errRevoked, r.err)
	default:
		c.next(n)
		return grant{}, r.err
	}
}

func (c *client) loginCert(ctx context.Context, l *Cert) (grant, error) {
	r, err := c.ask(ctx, "", http.MethodPut, "auth/"+l.Mount+"/login", map[string]string{"name": l.Role})
	if err == nil {
		err = r.err
	}
	if err == nil && r.verdict != good {
		err = fmt.Errorf("there is no auth method at auth/%s", l.Mount)
	}
	if err != nil {
		return grant{}, loginError("TLS certificate %s: %w: check its dates and the certificate role", l.CertFile, err)
	}
	return parseLogin(r.body)
}

func parseLogin(body []byte) (grant, error) {
	var a auth
	if err := json.Unmarshal(body, &a); err != nil || a.Auth.Token == "" {
		return grant{}, loginError("the answer holds no token")
	}
	return a.grant(), nil
}

// wrapPath is where an honest secret id comes from. A wrapping token of anything
// else was slipped in.
var wrapPath = regexp.MustCompile(`^auth/[A-Za-z0-9_/-]+/role/[A-Za-z0-9_-]+/secret-id$`)

func (c *client) loginAppRole(ctx context.Context, l *AppRole) (grant, error) {
	if l.TokenCache != "" {
		if token, err := c.cfg.readSecret(l.TokenCache); err == nil {
			if g, err := c.lookup(ctx, token); err == nil {
				return g, nil
			}
		} else if !errors.Is(err, os.ErrNotExist) {
			return grant{}, err
		}
	}
	idPath, err := c.cfg.path(l.RoleIDFile)
	if err != nil {
		return grant{}, err
	}
	roleID, err := os.ReadFile(idPath)
	if err != nil {
		return grant{}, fmt.Errorf("keystore/vault: login.approle.role_id_file: %w", err)
	}
	wrap, err := c.cfg.readSecret(l.SecretIDFile)
	if err != nil {
		return grant{}, err
	}
	secretID, err := c.unwrap(ctx, wrap, l)
	if err != nil {
		return grant{}, err
	}
	r, err := c.ask(ctx, "", http.MethodPut, "auth/"+l.Mount+"/login",
		map[string]string{"role_id": strings.TrimSpace(string(roleID)), "secret_id": secretID})
	if err == nil {
		err = r.err
	}
	switch {
	case err == nil && r.verdict == good:
	case err != nil && strings.Contains(err.Error(), "unauthorized by CIDR"):
		return grant{}, loginError("AppRole: this station's address is not in the role's CIDR list, and the secret id is used up: correct the list or the address, then put a new wrapped secret id into %s", l.SecretIDFile)
	case err != nil && strings.Contains(err.Error(), "invalid role or secret ID"):
		return grant{}, loginError("AppRole: role id and secret id do not belong together, or the secret id has expired: check %s and put a new wrapped secret id into %s", l.RoleIDFile, l.SecretIDFile)
	default:
		return grant{}, loginError("AppRole: %w: the secret id may be used up: put a new wrapped one into %s", err, l.SecretIDFile)
	}
	g, err := parseLogin(r.body)
	if err == nil && l.TokenCache != "" {
		err = c.cfg.writeCache(l.TokenCache, g.token)
	}
	return g, err
}

// unwrap opens the wrapping token. It works once: when the answer is lost, the
// secret id is lost too.
func (c *client) unwrap(ctx context.Context, wrap string, l *AppRole) (string, error) {
	r, err := c.ask(ctx, "", http.MethodPut, "sys/wrapping/lookup", map[string]string{"token": wrap})
	if err == nil {
		err = r.err
	}
	if err != nil || r.verdict != good {
		if r.verdict == refused || r.verdict == badToken {
			return "", loginError("AppRole: the wrapping token in %s is used up or has expired: put a new one there. If this station did not use it, somebody else has the secret id: revoke it (vault write auth/%s/role/ROLE/secret-id-accessor/destroy)", l.SecretIDFile, l.Mount)
		}
		return "", loginError("AppRole: %w", err)
	}
	var look struct {
		Data struct {
			Path string `json:"creation_path"`
		} `json:"data"`
	}
	if err := json.Unmarshal(r.body, &look); err != nil || !wrapPath.MatchString(look.Data.Path) || !strings.HasPrefix(look.Data.Path, "auth/"+l.Mount+"/") {
		return "", loginError("AppRole: the wrapping token in %s was not made by auth/%s/role/…/secret-id: somebody changed the file", l.SecretIDFile, l.Mount)
	}
	r, err = c.ask(ctx, wrap, http.MethodPut, "sys/wrapping/unwrap", nil)
	if err == nil {
		err = r.err
	}
	if err != nil || r.verdict != good {
		return "", loginError("AppRole: unwrapping the secret id of %s: %w: it may be used up: put a new one there", l.SecretIDFile, err)
	}
	var id struct {
		Data struct {
			SecretID string `json:"secret_id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(r.body, &id); err != nil || id.Data.SecretID == "" {
		return "", loginError("AppRole: what was wrapped in %s is no secret id", l.SecretIDFile)
	}
	return id.Data.SecretID, nil
}

func (c Config) writeCache(name, token string) error {
	path, err := c.path(name)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".token-*") // mode 0600
	if err != nil {
		return fmt.Errorf("keystore/vault: login.approle.token_cache: %w", err)
	}
	_, err = f.WriteString(token + "\n")
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keystore/vault: login.approle.token_cache: %w", err), os.Remove(f.Name()))
	}
	return nil
}
