package vault

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/keystore"
)

// TransitMount is where the transit engine is.
const TransitMount = "transit"

// Signer signs with a station's Ed25519 key in Vault's transit engine. The
// private half never leaves Vault; the station's policy lets it sign with this
// key and no other.
type Signer struct {
	c    *client
	name string
}

// Signer gives the signer of the store's station (Config.Station). It uses the
// store's login, and ends with the store.
func (s *Store) Signer() (*Signer, error) {
	if err := checkName("station", s.c.cfg.Station); err != nil {
		return nil, err
	}
	return &Signer{s.c, TransitKey(s.c.cfg.Mount, s.c.cfg.Station)}, nil
}

// TransitKey is the name of a station's signing key.
func TransitKey(mount, station string) string {
	return PolicyName(RoleStation, PolicyParams{Mount: mount, Station: station})
}

// Name is the key's name in the transit engine.
func (s *Signer) Name() string { return s.name }

// PublicKeys gives the public halves of the key's versions, from the first.
func (s *Signer) PublicKeys(ctx context.Context) ([]ed25519.PublicKey, error) {
	path := TransitMount + "/keys/" + s.name
	r, err := s.c.read(ctx, http.MethodGet, path)
	switch {
	case err != nil:
		return nil, err
	case r.verdict == notFound:
		return nil, fmt.Errorf("%w: there is no signing key %s: make it with: provisiond keystore init --vault", keystore.ErrUnavailable, path)
	case r.verdict == refused:
		return nil, fmt.Errorf("%w: read %s: %w: compare the token's policy with `provisiond keystore policy station`", ErrDenied, path, r.err)
	}
	keys, err := parseTransitKey(r.body)
	if err != nil {
		return nil, fmt.Errorf("keystore/vault: %s: %w", path, err)
	}
	return keys, nil
}

func parseTransitKey(body []byte) ([]ed25519.PublicKey, error) {
	var answer struct {
		Data struct {
			Type          string `json:"type"`
			LatestVersion int    `json:"latest_version"`
			Keys          map[string]struct {
				PublicKey string `json:"public_key"`
			} `json:"keys"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, errors.New("the answer is not one of the transit engine")
	}
	if answer.Data.Type != "ed25519" {
		return nil, fmt.Errorf("it is of type %q: a journal is signed with ed25519", answer.Data.Type)
	}
	if n := answer.Data.LatestVersion; n < 1 || n > 1<<16 || n != len(answer.Data.Keys) {
		return nil, fmt.Errorf("it has %d keys and says that its version is %d: versions must not be archived", len(answer.Data.Keys), n)
	}
	keys := make([]ed25519.PublicKey, answer.Data.LatestVersion)
	for i := range keys {
		raw, err := base64.StdEncoding.DecodeString(answer.Data.Keys[strconv.Itoa(i+1)].PublicKey)
		if err != nil || len(raw) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("version %d has no public key", i+1)
		}
		keys[i] = raw
	}
	return keys, nil
}

// Sign signs msg with one version of the key.
func (s *Signer) Sign(ctx context.Context, version int, msg []byte) ([]byte, error) {
	body, err := s.c.transitSign(ctx, s.name, map[string]any{"input": msg, "key_version": version}, // []byte is base64 here
		"compare the token's policy with `provisiond keystore policy station`", "make it with: provisiond keystore init --vault")
	if err != nil {
		return nil, err
	}
	sig, err := parseSignature(body, version)
	if err == nil && len(sig) != ed25519.SignatureSize {
		err = errNoSignature
	}
	return sig, err
}

// transitSign asks for a signature. The engine may be asked again: a second
// signature is as good as the first. denied and missing say what to do then.
func (c *client) transitSign(ctx context.Context, name string, request map[string]any, denied, missing string) ([]byte, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	path := TransitMount + "/sign/" + name
	p := c.patience(ctx)
	for {
		token, err := c.session.use(ctx)
		if err != nil {
			return nil, err
		}
		r, n := c.send(ctx, p.limit, http.MethodPut, path, body)
		switch r.verdict {
		case good:
			return r.body, nil
		case refused:
			return nil, fmt.Errorf("%w: update %s: %w: %s", ErrDenied, path, r.err, denied)
		case notFound, misplaced:
			return nil, fmt.Errorf("%w: there is no signing key %s: %s", keystore.ErrUnavailable, path, missing)
		case badToken:
			c.session.spoil(token)
		case notNow, unknown:
			p.failed(c)
			c.next(n)
		}
		if !p.next(ctx) {
			return nil, errors.Join(r.err, ctx.Err())
		}
	}
}

var errNoSignature = errors.New("keystore/vault: the answer is no signature of that key version")

func parseSignature(body []byte, version int) ([]byte, error) {
	var answer struct {
		Data struct {
			Signature string `json:"signature"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, errNoSignature
	}
	text, ok := strings.CutPrefix(answer.Data.Signature, fmt.Sprintf("vault:v%d:", version))
	sig, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(sig) == 0 {
		return nil, errNoSignature
	}
	return sig, nil
}

// ManifestKey is the name of the key with which the OTA backend of a mount signs
// its manifests; its role may use it.
func ManifestKey(mount string) string {
	return PolicyName(RoleOTA, PolicyParams{Mount: mount}) + "-manifest"
}

// setupTransit makes the transit engine, a signing key per station and the key
// of manifests, if asked.
func (a *Admin) setupTransit(ctx context.Context, o SetupOptions, rep *SetupReport) error {
	keys := map[string]string{} // name and type
	if o.JournalKeys {
		for _, st := range o.Stations {
			keys[TransitKey(a.c.cfg.Mount, st.Name)] = "ed25519"
		}
	}
	if o.ManifestKey {
		keys[ManifestKey(a.c.cfg.Mount)] = "ecdsa-p256"
	}
	if len(keys) == 0 {
		return nil
	}
	end, err := a.end(ctx)
	if err != nil {
		return err
	}
	mounts, err := end.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return err
	}
	if m, ok := mounts[TransitMount+"/"]; !ok {
		if _, err := end.Logical().WriteWithContext(ctx, "sys/mounts/"+TransitMount, map[string]any{"type": "transit"}); err != nil {
			return fmt.Errorf("mount %s: %w", TransitMount, err)
		}
		rep.Changes = append(rep.Changes, "mounted transit at "+TransitMount)
	} else if m.Type != "transit" {
		return fmt.Errorf("at %s there is %s already", TransitMount, m.Type)
	}
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		path := TransitMount + "/keys/" + name
		p := a.c.patience(ctx)
		for {
			secret, err := end.Logical().ReadWithContext(ctx, path)
			if err == nil && secret != nil {
				break
			}
			if err == nil {
				if _, err = end.Logical().WriteWithContext(ctx, path, map[string]any{"type": keys[name], "exportable": false}); err == nil {
					rep.Changes = append(rep.Changes, "made signing key "+path)
					break
				}
			}
			if !p.next(ctx) { // a new mount is not ready at once
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return nil
}
