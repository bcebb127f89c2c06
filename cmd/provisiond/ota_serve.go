package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/seal"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/ota/release"
	"github.com/provisiond/provisiond/provision/ota/server"
	"github.com/provisiond/provisiond/station/notify"
)

type otaServeCmd struct {
	Config string `help:"The server's configuration." required:"" placeholder:"F"`
	Listen string `help:"Listen here and not where the configuration says; port 0 takes a free one." placeholder:"ADDR"`
	Check  bool   `help:"Only read the configuration, and say what is wrong with it."`
}

func (c *otaServeCmd) Run(a *app) (err error) {
	cfg, err := server.LoadConfig(c.Config)
	if err == nil && c.Listen != "" {
		err = cfg.ListenOn(c.Listen)
	}
	if err != nil {
		return &usageError{err}
	}
	if c.Check {
		_, err := fmt.Fprintf(a.out, "%s: good\n", c.Config)
		return err
	}
	if cfg.State == "" {
		return usage("%s: state: is missing; write state: /var/lib/provisiond-ota, or start it by systemd, which gives one", c.Config)
	}
	n, err := notify.FromEnvironment()
	if err != nil {
		return &usageError{err}
	}
	s := &otaService{a: a, cfg: cfg, notify: n}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(); err != nil {
		return err
	}
	return s.run()
}

// otaService is a running OTA server with everything around it.
type otaService struct {
	a      *app
	cfg    *server.Config
	notify *notify.Notifier

	releases *release.Store
	audit    *server.Audit
	server   *server.Server
	tls      *tls.Config
	cert     atomic.Pointer[tls.Certificate]
	closers  []func() error
}

func (s *otaService) later(f func() error) { s.closers = append(s.closers, f) }

func (s *otaService) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	return errors.Join(errs...)
}

// open opens everything, in the order in which a mistake is cheapest to see.
func (s *otaService) open() (err error) {
	cfg := s.cfg
	if err := s.openTLS(); err != nil {
		return &usageError{err}
	}
	if s.releases, err = release.Open(cfg.State, release.Options{IdentityFile: cfg.Releases.Identity, Memory: int64(cfg.Releases.MemoryMB) << 20}); err != nil {
		return otaFailure(err)
	}
	s.later(s.releases.Close)
	store, err := openKeystoreWith(s.a.ctx, cfg.Keystore, cfg.Identity)
	if err != nil {
		return err
	}
	s.later(store.Close)
	keys := new(signers)
	s.later(keys.Close)
	if v, ok := store.(vaultUse); ok {
		keys.share(v.path, v.Transit())
	}
	o := cfg.Options()
	o.Store, o.Releases, o.Observe = store, s.releases, s.observe
	if cfg.ManifestKey != "" {
		if o.Signer, err = keys.manifest(s.a.ctx, "manifest_key", cfg.ManifestKey); err != nil {
			return err
		}
	}
	if s.audit, err = server.OpenAudit(cfg.Audit.File, *cfg.Audit.Sync); err != nil {
		return &usageError{err}
	}
	s.later(s.audit.Close)
	o.Audit = s.audit
	if s.server, err = server.New(o); err != nil {
		return err
	}
	s.later(func() error { s.server.Close(); return nil })
	return nil
}

func (s *otaService) openTLS() error {
	c := s.cfg.TLS
	if c.Certificate == "" {
		return nil
	}
	if err := s.loadCertificate(); err != nil {
		return err
	}
	s.tls = &tls.Config{
		MinVersion: tls.VersionTLS12,
		// Devices speak HTTP/1.1 (esp_http_client), and a connection of that kind
		// holds less.
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cert.Load(), nil },
	}
	if c.Clients == "" {
		return nil
	}
	b, err := os.ReadFile(c.Clients)
	if err != nil {
		return fmt.Errorf("tls.clients: %w", err)
	}
	s.tls.ClientCAs = x509.NewCertPool()
	if !s.tls.ClientCAs.AppendCertsFromPEM(b) {
		return fmt.Errorf("tls.clients: %s holds no certificate in PEM", c.Clients)
	}
	s.tls.ClientAuth = tls.VerifyClientCertIfGiven
	return nil
}

func (s *otaService) loadCertificate() error {
	c := s.cfg.TLS
	cert, err := os.ReadFile(c.Certificate)
	if err != nil {
		return fmt.Errorf("tls.certificate: %w", err)
	}
	key, err := seal.ReadSecretFile(c.Key)
	if err != nil {
		return fmt.Errorf("tls.key: %w", err)
	}
	defer clear(key)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return errors.New("tls.certificate: give a certificate and the key that belongs to it, both as PEM")
	}
	s.cert.Store(&pair)
	return nil
}

// observe writes the service's events into the log.
func (s *otaService) observe(e server.Event) {
	fields := []zap.Field{zap.String("kind", e.Kind)}
	if e.Unit != (chip.MAC{}) {
		fields = append(fields, zap.Stringer("unit", e.Unit))
	}
	if e.Err != nil {
		fields = append(fields, zap.Error(e.Err))
	}
	switch {
	case e.Kind == "http":
		s.a.log.Debug(e.Text, fields...)
	case e.Err != nil || e.Kind == "panic":
		s.a.log.Error(e.Text, fields...)
	default:
		s.a.log.Info(e.Text, fields...)
	}
}

// otaSocket is where commands reach a running server, in its state folder.
const otaSocket = "ota.sock"

func (s *otaService) run() error {
	ctx, stop := context.WithCancel(s.a.ctx)
	defer stop()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return usage("listen: %w", err)
	}
	admin, err := listenAdmin(ctx, s.cfg.State)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	var work sync.WaitGroup
	ended := make(chan error, 3)
	serve := func(f func() error) {
		work.Go(func() {
			err := f()
			stop() // one that ends takes the others along
			ended <- err
		})
	}
	serve(func() error { return s.server.Serve(ctx, l, s.tls) })
	serve(func() error { return serveAdmin(ctx, admin, s.releases) })
	if s.cfg.Metrics != "" {
		m, err := lc.Listen(ctx, "tcp", s.cfg.Metrics)
		if err != nil {
			stop()
			work.Wait()
			return usage("metrics: %w", err)
		}
		serve(func() error { return serveHTTP(ctx, m, s.server.Metrics()) })
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	work.Go(func() {
		for {
			select {
			case <-hup:
				s.reload()
			case <-ctx.Done():
				return
			}
		}
	})
	if err := s.announce(l.Addr()); err != nil {
		s.a.log.Warn("the address was not told", zap.Error(err))
	}
	if err := s.notify.Ready(); err != nil {
		s.a.log.Warn("systemd", zap.Error(err))
	}
	<-ctx.Done()
	if err := s.notify.Stopping(); err != nil {
		s.a.log.Warn("systemd", zap.Error(err))
	}
	work.Wait()
	close(ended)
	for e := range ended {
		err = errors.Join(err, e)
	}
	return err
}

// announce tells a script where units find the server.
func (s *otaService) announce(addr net.Addr) error {
	scheme := "http"
	if s.tls != nil {
		scheme = "https"
	}
	return json.NewEncoder(s.a.out).Encode(struct {
		Listening string `json:"listening"`
		URL       string `json:"url"`
	}{addr.String(), scheme + "://" + addr.String()})
}

// reload reads the certificate again and opens the audit file anew, after a
// rotation.
func (s *otaService) reload() {
	if err := s.notify.Reloading(); err != nil {
		s.a.log.Warn("systemd", zap.Error(err))
	}
	if err := s.audit.Reopen(); err != nil {
		s.a.log.Error("the audit file stays as it was", zap.Error(err))
	}
	if s.tls != nil {
		if err := s.loadCertificate(); err != nil {
			s.a.log.Error("the certificate stays as it was", zap.Error(err))
		}
	}
	if err := s.notify.Ready(); err != nil {
		s.a.log.Warn("systemd", zap.Error(err))
	}
}

// serveHTTP serves something small until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: time.Minute}
	end := context.AfterFunc(ctx, func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if srv.Shutdown(last) != nil {
			_ = srv.Close() // it was asked nicely
		}
	})
	defer end()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// otaFailure gives errors of the release store their exit code.
func otaFailure(err error) error {
	for _, wrong := range []error{
		release.ErrInput, release.ErrNotFound, release.ErrExists, release.ErrInUse, release.ErrMissing, seal.ErrIdentity, seal.ErrMode,
	} {
		if errors.Is(err, wrong) {
			return &usageError{err}
		}
	}
	if errors.Is(err, release.ErrDamaged) {
		return fmt.Errorf("%w: %w", keystore.ErrDamaged, err)
	}
	return err
}
