package server

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/provisiond/provisiond/internal/conf"
	"github.com/provisiond/provisiond/provision/ota/release"
)

// Config is the file that `provisiond ota serve --config` reads. Its comments are
// its manual; configs/ota.yaml is an example that a test loads. Relative file names
// are relative to the file, and credential:NAME is a file in systemd's credentials
// directory.
type Config struct {
	// State is the folder with the releases (`provisiond ota release init` makes it),
	// the audit file and the socket for commands. Without it: the folder that systemd
	// gives, $STATE_DIRECTORY.
	State string `yaml:"state"`
	// Listen is the address for units. One that is not on loopback needs TLS.
	Listen string `yaml:"listen"`
	// Metrics is an address for /metrics and /healthz, best on loopback. None without it.
	Metrics string `yaml:"metrics"`
	// TLS of Listen.
	TLS TLSConfig `yaml:"tls"`
	// Keystore is what --keystore says: vault:FILE.yaml or the file of a local one.
	Keystore string `yaml:"keystore"`
	// Identity is the age identity file that opens a local keystore.
	Identity string `yaml:"identity"`
	// NoKeys is for a keystore login with the role ota-public: units get plaintext,
	// where their channel allows it, or esp_encrypted_img files.
	NoKeys bool `yaml:"no_keys"`
	// Releases says how images are kept in memory.
	Releases ReleasesConfig `yaml:"releases"`
	// ManifestKey signs manifests: a PEM file of mode 0600, or
	// vault-transit:FILE.yaml[#KEY[/vN]]. Without it there are none.
	ManifestKey string `yaml:"manifest_key"`
	// Keys says how long keys stay in memory.
	Keys KeysConfig `yaml:"keys"`
	// Audit says what becomes of its lines.
	Audit AuditConfig `yaml:"audit"`
	// Limits of what clients may do.
	Limits LimitsConfig `yaml:"limits"`

	places *conf.Places
}

// TLSConfig says how the server proves itself, and which clients prove themselves so.
type TLSConfig struct {
	// PEM files. The key's file must not be readable by others. Both are read again
	// when the server is told to reload (SIGHUP).
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	// Clients is a PEM file with the authorities of units' certificates. Without it
	// units use tokens only.
	Clients string `yaml:"clients"`
}

// ReleasesConfig says how images are kept in memory.
type ReleasesConfig struct {
	// Identity opens the images; releases.identity in the state folder without it.
	Identity string `yaml:"identity"`
	// MemoryMB bounds the open images; 256 without it.
	MemoryMB int `yaml:"memory_mb"`
}

// KeysConfig says how long keys stay in memory.
type KeysConfig struct {
	// Hold a key so long after it was read; 15m without it. It is also how long a
	// unit is served while the keystore is away, and how long it may take until the
	// server learns that a unit was set aside.
	Hold time.Duration `yaml:"hold"`
	// Most keys at once; 20000 without it.
	Most int `yaml:"most"`
	// UnknownHold is how long it is remembered that a unit is unknown; 1m without it.
	UnknownHold time.Duration `yaml:"unknown_hold"`
	// Wait so long for the keystore; 5s without it.
	Wait time.Duration `yaml:"wait"`
}

// AuditConfig says what becomes of the audit lines.
type AuditConfig struct {
	// File; audit.jsonl in the state folder without it.
	File string `yaml:"file"`
	// Sync the file at the latest so long after a line; 1s without it. 0s is after
	// every line, before a byte is sent.
	Sync *time.Duration `yaml:"sync"`
}

// LimitsConfig are limits of what clients may do.
type LimitsConfig struct {
	// Requests per second of all units, and of one.
	Requests RateConfig `yaml:"requests"`
	PerUnit  RateConfig `yaml:"per_unit"`
	// Lookups in the keystore per second of all clients, and for one address.
	Lookups           RateConfig `yaml:"lookups"`
	LookupsPerAddress RateConfig `yaml:"lookups_per_address"`
	// Connections at once; 20000 without it.
	Connections int `yaml:"connections"`
	// Stall is how long a client may take for 32 KiB of what is sent; 1m without it.
	Stall time.Duration `yaml:"stall"`
}

// RateConfig is a rate and what may come at once.
type RateConfig struct {
	PerSecond float64 `yaml:"per_second"`
	Burst     int     `yaml:"burst"`
}

// LoadConfig reads and checks a file.
func LoadConfig(name string) (*Config, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return ParseConfig(name, b)
}

// ParseConfig checks a file's text. All that is wrong is in the error.
func ParseConfig(name string, b []byte) (*Config, error) {
	c := &Config{}
	var err error
	if c.places, err = conf.Parse(name, b, c, "configs/ota.yaml"); err != nil {
		return nil, err
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	c.fill()
	return c, nil
}

func (c *Config) validate() error {
	var errs []error
	bad := func(path, fix, format string, args ...any) {
		errs = append(errs, c.places.At(path, fix, format, args...))
	}
	if c.Keystore == "" {
		bad("keystore", "write keystore: vault:keystore.yaml", "is missing")
	}
	for _, a := range []struct{ path, addr string }{{"listen", c.Listen}, {"metrics", c.Metrics}} {
		if a.addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			bad(a.path, "write an address and a port: 0.0.0.0:8443", "%q is no address", a.addr)
		}
	}
	if (c.TLS.Certificate == "") != (c.TLS.Key == "") {
		bad("tls", "name certificate and key, or none of them", "one of the two is missing")
	}
	if c.TLS.Clients != "" && c.TLS.Certificate == "" {
		bad("tls.clients", "name certificate and key too", "clients have certificates only where the server has one")
	}
	for _, d := range []struct {
		path      string
		is        time.Duration
		low, high time.Duration
	}{
		{"keys.hold", c.Keys.Hold, time.Second, 24 * time.Hour},
		{"keys.unknown_hold", c.Keys.UnknownHold, time.Second, time.Hour},
		{"keys.wait", c.Keys.Wait, 100 * time.Millisecond, time.Minute},
		{"limits.stall", c.Limits.Stall, time.Second, time.Hour},
	} {
		if d.is != 0 && (d.is < d.low || d.is > d.high) {
			bad(d.path, fmt.Sprintf("write %s to %s", d.low, d.high), "%s is not sensible", d.is)
		}
	}
	if s := c.Audit.Sync; s != nil && (*s < 0 || *s > time.Minute) {
		bad("audit.sync", "write 0s to 1m", "%s is not sensible", *s)
	}
	for _, n := range []struct {
		path string
		is   int
		most int
	}{{"releases.memory_mb", c.Releases.MemoryMB, 1 << 20}, {"keys.most", c.Keys.Most, 10_000_000}, {"limits.connections", c.Limits.Connections, 1_000_000}} {
		if n.is < 0 || n.is > n.most {
			bad(n.path, fmt.Sprintf("write 1 to %d", n.most), "%d is not sensible", n.is)
		}
	}
	for _, r := range []struct {
		path string
		rate RateConfig
	}{{"limits.requests", c.Limits.Requests}, {"limits.per_unit", c.Limits.PerUnit}, {"limits.lookups", c.Limits.Lookups}, {"limits.lookups_per_address", c.Limits.LookupsPerAddress}} {
		// Written so that not-a-number is refused.
		if r.rate != (RateConfig{}) && !(r.rate.PerSecond > 0 && r.rate.PerSecond <= 1e6 && r.rate.Burst >= 1 && r.rate.Burst <= 1e6) {
			bad(r.path, "write per_second and burst, both up to 1000000", "%v and %d are no rate", r.rate.PerSecond, r.rate.Burst)
		}
	}
	if c.Listen != "" && c.TLS.Certificate == "" && !loopback(c.Listen) {
		bad("listen", "name tls.certificate and tls.key, or listen on 127.0.0.1 behind a proxy that has TLS", "%s is reached from elsewhere, and tokens would travel in clear", c.Listen)
	}
	return conf.Join(errs)
}

// loopback reports whether only this machine reaches an address.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// ListenOn replaces the address, as a flag does.
func (c *Config) ListenOn(addr string) error {
	was := c.Listen
	c.Listen = addr
	if err := c.validate(); err != nil {
		c.Listen = was
		return err
	}
	return nil
}

// fill sets what was left out and makes file names absolute.
func (c *Config) fill() {
	c.State = cmp.Or(c.State, os.Getenv("STATE_DIRECTORY"))
	c.Listen = cmp.Or(c.Listen, "127.0.0.1:8090")
	c.Releases.MemoryMB = cmp.Or(c.Releases.MemoryMB, release.DefaultMemory>>20)
	if c.Audit.Sync == nil {
		second := time.Second
		c.Audit.Sync = &second
	}
	for _, p := range []*string{&c.State, &c.TLS.Certificate, &c.TLS.Key, &c.TLS.Clients, &c.Identity, &c.Releases.Identity, &c.Audit.File} {
		*p = c.places.Resolve(*p)
	}
	for _, p := range []*string{&c.Keystore, &c.ManifestKey} {
		*p = c.places.ResolveAny(*p)
	}
	if c.State != "" {
		c.Releases.Identity = cmp.Or(c.Releases.Identity, filepath.Join(c.State, release.IdentityFile))
		c.Audit.File = cmp.Or(c.Audit.File, filepath.Join(c.State, "audit.jsonl"))
	}
}

// Options are the limits of a Server.
func (c *Config) Options() Options {
	l := c.Limits
	return Options{
		NoKeys: c.NoKeys, KeyHold: c.Keys.Hold, KeysMost: c.Keys.Most, UnknownHold: c.Keys.UnknownHold, LookupWait: c.Keys.Wait, Stall: l.Stall,
		Requests: Rate(l.Requests), PerUnit: Rate(l.PerUnit), Lookups: Rate(l.Lookups), LookupsPerAddress: Rate(l.LookupsPerAddress), Connections: l.Connections,
	}
}
