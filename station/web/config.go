package web

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Config is the section "web" of the station's configuration.
type Config struct {
	// Address to listen on. The usual one is 127.0.0.1:8080, which only this
	// machine reaches. Any other than loopback needs TLS.
	Listen string `yaml:"listen"`

	// Names under which browsers reach this station, for example
	// station-7.factory.example. They stand in a self-made certificate, and a request
	// for another name is refused (so that no foreign page can point its own name at
	// this station). Addresses and this machine's own name need not be listed.
	Hosts []string `yaml:"hosts"`

	TLS TLS `yaml:"tls"`

	// File with the machines that may use the API: lines of "NAME ROLE SHA-256 of the
	// token in hex". None means that only people use it.
	Tokens string `yaml:"tokens"`

	// Let everybody who reaches the address see the tiles, without a login. What
	// changes something, and every unit's history, still needs one.
	OpenBoard bool `yaml:"open_board"`

	// Language of a page before somebody has chosen one: en, de or zh. Without it the
	// browser's wish counts.
	Language string `yaml:"language"`
}

// TLS is the section "web.tls".
type TLS struct {
	// off, self or files. The usual one is off on loopback and self elsewhere.
	Mode string `yaml:"mode"`
	// PEM files, for mode files. The key's file must not be readable by others. Both
	// are read again when they change.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
}

// The modes of TLS.
const (
	TLSOff   = "off"
	TLSSelf  = "self"
	TLSFiles = "files"
)

// FieldError is a configuration value that is not right.
type FieldError struct {
	Field   string // path inside the section web: tls.mode
	Problem string
	Fix     string
}

// Error names the field, what is wrong and what would be right.
func (e *FieldError) Error() string { return "web." + e.Field + ": " + e.Problem + "; " + e.Fix }

func (c *Config) setDefaults() {
	if c.Listen == "" {
		c.Listen = "127.0.0.1:8080"
	}
	if c.TLS.Mode == "" {
		c.TLS.Mode = TLSOff
		if !c.loopback() {
			c.TLS.Mode = TLSSelf
		}
	}
}

// Validate checks the values. Its errors are *FieldError, joined.
func (c Config) Validate() error {
	c.setDefaults()
	var errs []error
	bad := func(field, fix, format string, args ...any) {
		errs = append(errs, &FieldError{Field: field, Problem: fmt.Sprintf(format, args...), Fix: fix})
	}
	if _, port, err := net.SplitHostPort(c.Listen); err != nil || port == "" {
		bad("listen", "write an address and a port, for example 127.0.0.1:8080", "%q is no address", c.Listen)
	}
	for i, h := range c.Hosts {
		if h == "" || len(h) > 253 || strings.ContainsAny(h, " /:*\"'\\\r\n\t") {
			bad(fmt.Sprintf("hosts[%d]", i), "write a name without scheme, port or path", "%q is no host name", h)
		}
	}
	switch c.TLS.Mode {
	case TLSOff:
		if !c.loopback() {
			bad("tls.mode", `write "self" or "files", or listen on 127.0.0.1`, "without TLS, PINs and passwords go over the network as they are")
		}
	case TLSSelf:
	case TLSFiles:
		if c.TLS.Certificate == "" {
			bad("tls.certificate", "name the PEM file", "is missing, and tls.mode is files")
		}
		if c.TLS.Key == "" {
			bad("tls.key", "name the PEM file", "is missing, and tls.mode is files")
		}
	default:
		bad("tls.mode", "write off, self or files", "%q is not a mode", c.TLS.Mode)
	}
	if c.TLS.Mode != TLSFiles && (c.TLS.Certificate != "" || c.TLS.Key != "") {
		bad("tls.mode", "write files, or take certificate and key away", "is %s, but files are named", c.TLS.Mode)
	}
	if c.Language != "" && !slices.Contains(languages, c.Language) {
		bad("language", "write "+strings.Join(languages, ", "), "%q is not a language of the pages", c.Language)
	}
	return errors.Join(errs...)
}

func (c *Config) loopback() bool {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// knows reports whether a request may be for this host: an address, a loopback
// name, this machine or one of the configured names. A name that somebody else
// points at this station is none of them.
func (c *Config) knows(host, machine string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	if name == "localhost" || machine != "" && name == strings.ToLower(machine) {
		return true
	}
	return slices.ContainsFunc(c.Hosts, func(h string) bool { return strings.EqualFold(h, name) })
}
