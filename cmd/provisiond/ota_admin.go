package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/ota/release"
	"github.com/provisiond/provisiond/provision/ota/server"
)

// otaStateFlags say which server's state a command is about.
type otaStateFlags struct {
	State  string `help:"The server's state folder." placeholder:"DIR"`
	Config string `help:"The server's configuration, which names it." placeholder:"F"`
	JSON   bool   `help:"Answer in JSON."`
}

func (f otaStateFlags) dir() (string, error) {
	switch {
	case f.State != "" && f.Config != "":
		return "", usage("--state and --config say the same: give one of them")
	case f.State != "":
		return f.State, nil
	case f.Config == "":
		return "", usage("give --state DIR or --config F: whose releases are meant?")
	}
	cfg, err := server.LoadConfig(f.Config)
	if err != nil {
		return "", &usageError{err}
	}
	if cfg.State == "" {
		return "", usage("%s names no state folder: give --state", f.Config)
	}
	return cfg.State, nil
}

// otaRequest is one operation on a release store. The server that has the store
// open does it for a command; without a server the command does it itself.
type otaRequest struct {
	Op        string   `json:"op"`
	Release   string   `json:"release,omitempty"`
	Image     []byte   `json:"image,omitempty"`
	Recipes   []string `json:"recipes,omitempty"`
	Channel   string   `json:"channel,omitempty"`
	Share     string   `json:"share,omitempty"`
	Why       string   `json:"why,omitempty"`
	Unit      string   `json:"unit,omitempty"`
	Plaintext bool     `json:"plaintext,omitempty"`
	By        string   `json:"by,omitempty"` // of a command that works without a server
}

// maxAdminRequest: an image of 16 MB in base64, and a little more.
const maxAdminRequest = 24 << 20

// otaAnswer is what an operation shows.
type otaAnswer struct {
	Releases []release.Release `json:"releases,omitempty"`
	Channels []release.Channel `json:"channels,omitempty"`
	Unit     *otaUnitAnswer    `json:"unit,omitempty"`
}

// otaUnitAnswer is a unit and its numbers for what is rolled out in its channel.
type otaUnitAnswer struct {
	release.Unit
	Offers []otaUnitOffer `json:"offers,omitempty"`
}

type otaUnitOffer struct {
	Release string `json:"release"`
	Share   string `json:"share"`
	In      bool   `json:"in"`
	Halted  bool   `json:"halted"`
}

func (q otaRequest) do(ctx context.Context, s *release.Store) (*otaAnswer, error) {
	var mac chip.MAC
	if q.Unit != "" {
		var err error
		if mac, err = chip.ParseMAC(q.Unit); err != nil {
			return nil, fmt.Errorf("%w: %w", release.ErrInput, err)
		}
	}
	one := func() (*otaAnswer, error) {
		r, err := s.Release(q.Release)
		if err != nil {
			return nil, err
		}
		a := &otaAnswer{Releases: []release.Release{r}}
		for _, c := range s.Channels() {
			for _, x := range c.Rollouts {
				if x.Release == r.Name {
					a.Channels = append(a.Channels, release.Channel{Name: c.Name, Plaintext: c.Plaintext, Rollouts: []release.Rollout{x}})
				}
			}
		}
		return a, nil
	}
	var err error
	switch q.Op {
	case "add":
		_, err = s.Add(ctx, q.Release, q.Image, q.Recipes, q.By)
	case "rollout":
		var share release.Share
		if share, err = release.ParseShare(q.Share); err == nil {
			err = s.Rollout(q.Channel, q.Release, share, q.By)
		}
	case "halt":
		err = s.Halt(q.Release, q.Why)
	case "resume":
		err = s.Resume(q.Release)
	case "remove":
		if err = s.Remove(q.Release); err == nil {
			return &otaAnswer{}, nil
		}
	case "show":
	case "list":
		return &otaAnswer{Releases: s.Releases(), Channels: s.Channels()}, nil
	case "plaintext":
		if err = s.SetPlaintext(q.Channel, q.Plaintext); err == nil {
			return &otaAnswer{Channels: s.Channels()}, nil
		}
	case "unit":
		return unitAnswer(s, mac)
	case "pin":
		if err = s.Pin(mac, q.Release); err == nil {
			return unitAnswer(s, mac)
		}
	case "channel":
		if err = s.SetChannel(mac, q.Channel); err == nil {
			return unitAnswer(s, mac)
		}
	default:
		err = fmt.Errorf("%w: there is no operation %q: the server is of another build", release.ErrInput, q.Op)
	}
	if err != nil {
		return nil, err
	}
	return one()
}

func unitAnswer(s *release.Store, mac chip.MAC) (*otaAnswer, error) {
	u, err := s.Unit(mac)
	if err != nil {
		return nil, err
	}
	a := &otaUnitAnswer{Unit: u}
	for _, c := range s.Channels() {
		if c.Name != u.Channel {
			continue
		}
		for _, x := range c.Rollouts {
			r, err := s.Release(x.Release)
			if err != nil {
				return nil, err
			}
			a.Offers = append(a.Offers, otaUnitOffer{Release: x.Release, Share: x.Share.String(), In: x.Has(mac), Halted: r.Halted})
		}
	}
	return &otaAnswer{Unit: a}, nil
}

// adminError travels over the socket.
type adminError struct {
	Code    int    `json:"code"` // of the command's exit
	Message string `json:"message"`
}

// listenAdmin makes the socket. Only this user may use it: the folder has mode 0700
// and the socket 0600. Who has the store open owns the name, so one that is left is
// a dead one's.
func listenAdmin(ctx context.Context, state string) (net.Listener, error) {
	path := filepath.Join(state, otaSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return l, nil
}

func serveAdmin(ctx context.Context, l net.Listener, s *release.Store) error {
	return serveHTTP(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q otaRequest
		answer, err := func() (*otaAnswer, error) {
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminRequest)).Decode(&q); err != nil {
				return nil, fmt.Errorf("%w: the request does not parse: %w", release.ErrInput, err)
			}
			return q.do(r.Context(), s)
		}()
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			err = otaFailure(err)
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(adminError{exitCode(err), err.Error()}) // whoever asked is gone
			return
		}
		_ = json.NewEncoder(w).Encode(answer) // whoever asked is gone
	}))
}

// otaDo does an operation, by the server if one runs.
func (a *app) otaDo(dir string, q otaRequest) (*otaAnswer, error) {
	q.By = whoAmI()
	answer, err := a.askAdmin(dir, q)
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return answer, err
	}
	if err := ownFolder(dir); err != nil {
		return nil, err
	}
	s, err := release.Open(dir, release.Options{})
	if errors.Is(err, release.ErrLocked) {
		return nil, fmt.Errorf("%w, which does not answer at its socket: is it just starting or ending?", err)
	}
	if err != nil {
		return nil, otaFailure(err)
	}
	answer, err = q.do(a.ctx, s)
	return answer, otaFailure(errors.Join(err, s.Close()))
}

// ownFolder refuses to work in somebody else's folder: files that root makes there
// could not be read by the server. A running server makes them itself.
func ownFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return nil //nolint:nilerr // opening it says what is wrong
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return usage("%s belongs to the user with number %d, and no server runs there: start the server, or work as that user", dir, st.Uid)
	}
	return nil
}

func (a *app) askAdmin(dir string, q otaRequest) (*otaAnswer, error) {
	path := filepath.Join(dir, otaSocket)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(a.ctx, http.MethodPost, "http://ota/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAdminRequest))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		var e adminError
		if err := json.Unmarshal(b, &e); err != nil || e.Code == 0 {
			return nil, fmt.Errorf("the server at %s answers %s", path, resp.Status)
		}
		return nil, &codeError{e.Code, errors.New(e.Message)}
	}
	var answer otaAnswer
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("the server at %s: its answer does not parse: %w", path, err)
	}
	return &answer, nil
}

// whoAmI names the user for the release store.
func whoAmI() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(os.Getuid())
}
