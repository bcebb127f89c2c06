package web

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"time"

	"go.uber.org/zap"
)

// Time limits of a connection. Streams lift them for themselves.
const (
	headerLimit  = 5 * time.Second
	readLimit    = 20 * time.Second
	answerLimit  = 60 * time.Second // a plan, or the certificate of a unit with a long history
	idleLimit    = 2 * time.Minute
	headerBytes  = 16 << 10
	closingLimit = 5 * time.Second
)

// Secure reports whether the pages come over TLS.
func (s *Server) Secure() bool { return s.o.Config.TLS.Mode != TLSOff }

// ListenAndServe listens as the configuration says and serves until ctx ends. Its
// self-made certificate lives in dir. Listening is told to up, which may be nil.
func (s *Server) ListenAndServe(ctx context.Context, dir string, up func(net.Addr)) error {
	conf, err := s.tlsConfig(dir)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.o.Config.Listen)
	if err != nil {
		return err
	}
	if up != nil {
		up(l.Addr())
	}
	return s.Serve(ctx, l, conf)
}

// Serve serves on a listener until ctx ends; conf may be nil. Streams end at once,
// other requests get a few seconds.
func (s *Server) Serve(ctx context.Context, l net.Listener, conf *tls.Config) error {
	srv := &http.Server{
		Handler: s, ReadHeaderTimeout: headerLimit, ReadTimeout: readLimit, WriteTimeout: answerLimit,
		IdleTimeout: idleLimit, MaxHeaderBytes: headerBytes, TLSConfig: conf,
		ErrorLog: zap.NewStdLog(s.log.Named("http")),
	}
	done := make(chan error, 1)
	go func() {
		if conf != nil {
			done <- srv.ServeTLS(l, "", "")
		} else {
			done <- srv.Serve(l)
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	s.Close()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closingLimit)
	defer cancel()
	err := srv.Shutdown(end)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if e := <-done; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

func (s *Server) tlsConfig(dir string) (*tls.Config, error) {
	var get func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	switch c := s.o.Config; c.TLS.Mode {
	case TLSSelf:
		names := append([]string{"localhost", "127.0.0.1", "::1"}, c.Hosts...)
		if h, err := os.Hostname(); err == nil {
			names = append(names, h)
		}
		if host, _, err := net.SplitHostPort(c.Listen); err == nil {
			names = append(names, hostNames(host)...)
		}
		own := &selfMade{dir: dir, names: names, now: time.Now}
		if _, err := own.get(nil); err != nil {
			return nil, err
		}
		get = own.get
	case TLSFiles:
		f := &fileCert{cert: c.TLS.Certificate, key: c.TLS.Key, log: s.log}
		if _, err := f.get(nil); err != nil {
			return nil, err
		}
		get = f.get
	default:
		return nil, nil //nolint:nilnil // no TLS
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: get, NextProtos: []string{"h2", "http/1.1"}}, nil
}

// hostNames are the names of a listening address: itself, or of all the machine's
// addresses if it listens on all of them.
func hostNames(host string) []string {
	ip := net.ParseIP(host)
	if host != "" && (ip == nil || !ip.IsUnspecified()) {
		return []string{host}
	}
	var out []string
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			out = append(out, n.IP.String())
		}
	}
	return out
}
