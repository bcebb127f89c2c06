package vault

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
)

// Config says which Vault, which mount and who we are. Its comments are the
// manual of the file that --keystore vault:FILE.yaml names. Relative file names
// are relative to that file, and credential:NAME is the file NAME in systemd's
// credentials directory (LoadCredential=).
//
// Of the environment, VAULT_ADDR, VAULT_CACERT and VAULT_NAMESPACE fill in what
// the file leaves open. Nothing else is taken from it: no token, no proxy.
type Config struct {
	// Addresses of the servers: https://host:8200, one per node or one of a load
	// balancer. http:// is for loopback addresses only. With several, another one
	// is asked when one does not answer.
	Addresses []string `yaml:"addresses"`
	// CACert is a PEM file with the authority of the servers. Without it the
	// system's authorities are trusted.
	CACert string `yaml:"ca_cert"`
	// Namespace of Vault Enterprise. The community edition ignores it silently.
	Namespace string `yaml:"namespace"`
	// Mount is the KV v2 mount; `provisiond` without it.
	Mount string `yaml:"mount"`
	// Station is this station's name in Vault: its AppRole and its checkpoints.
	Station string `yaml:"station"`
	// Timeout of one request; 2s without it. A write that ends so is looked up, so
	// a short one costs requests and never a key; a long one makes every slot wait
	// that long for a node that hangs.
	Timeout Duration `yaml:"timeout"`
	// Patience is how long one call may wait for a cluster that is choosing a
	// leader, or for a server that does not answer; 30s without it.
	Patience Duration `yaml:"patience"`
	// Login is how to log in: exactly one of its three.
	Login Login `yaml:"login"`

	dir string // of the file
}

// Login is how to log in.
type Login struct {
	AppRole   *AppRole `yaml:"approle"`
	Cert      *Cert    `yaml:"cert"`
	TokenFile string   `yaml:"token_file"` // a file with a token, mode 0600; for people, tickets and tests
}

// AppRole logs in with a role id and a response-wrapped secret id.
type AppRole struct {
	Mount string `yaml:"mount"` // of the auth method; approle without it
	// RoleIDFile holds the role id. It is no secret on its own.
	RoleIDFile string `yaml:"role_id_file"`
	// SecretIDFile holds the wrapping token of a secret id, mode 0600. It works
	// once: put a new one there when the login is lost (provisiond keystore
	// secret-id makes them).
	SecretIDFile string `yaml:"secret_id_file"`
	// TokenCache keeps the login over restarts: a file, mode 0600, best on tmpfs
	// (/run/provisiond/token). Without it every start uses up a secret id.
	TokenCache string `yaml:"token_cache"`
}

// Cert logs in with a TLS client certificate.
type Cert struct {
	Mount    string `yaml:"mount"` // of the auth method; cert without it
	Role     string `yaml:"role"`  // the certificate role; the server chooses without it
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"` // mode 0600
}

// Duration is a time.Duration that YAML writes as 5s.
type Duration time.Duration

// UnmarshalYAML reads 5s, 250ms and so on.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if err != nil || v <= 0 {
		return fmt.Errorf("line %d: %q is not a duration: write 5s or 250ms", n.Line, n.Value)
	}
	*d = Duration(v)
	return nil
}

// Prefix of the --keystore flag that names a Vault configuration.
const Prefix = "vault:"

// IsFlag reports whether a --keystore flag names a Vault configuration.
func IsFlag(flag string) bool { return strings.HasPrefix(flag, Prefix) }

// FromFlag reads the configuration that --keystore vault:FILE.yaml names.
func FromFlag(flag string) (Config, error) {
	file, ok := strings.CutPrefix(flag, Prefix)
	if !ok || file == "" || strings.HasPrefix(file, "//") {
		return Config{}, fmt.Errorf("keystore/vault: %q: write %sFILE.yaml; the file says which server and how to log in (docs/keystore-vault.md)", flag, Prefix)
	}
	return ReadConfig(file)
}

// ReadConfig reads a configuration file, fills in what the environment has and
// checks it.
func ReadConfig(file string) (Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("keystore/vault: configuration: %w", err)
	}
	c, err := ParseConfig(b)
	if err != nil {
		return Config{}, fmt.Errorf("keystore/vault: %s: %w", file, err)
	}
	if c.dir, err = filepath.Abs(filepath.Dir(file)); err != nil {
		return Config{}, err
	}
	c.fromEnvironment(os.Getenv)
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// ParseConfig reads YAML. Unknown and repeated keys are refused.
func ParseConfig(b []byte) (Config, error) {
	var c Config
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("there is more than one document in it: keep one")
	}
	return c, nil
}

func (c *Config) fromEnvironment(getenv func(string) string) {
	if a := getenv("VAULT_ADDR"); len(c.Addresses) == 0 && a != "" {
		c.Addresses = []string{a}
	}
	if c.CACert == "" {
		if c.CACert = getenv("VAULT_CACERT"); c.CACert != "" {
			c.CACert, _ = filepath.Abs(c.CACert)
		}
	}
	if c.Namespace == "" {
		c.Namespace = getenv("VAULT_NAMESPACE")
	}
}

// The values of what is left open.
const (
	DefaultMount    = "provisiond"
	DefaultTimeout  = 2 * time.Second
	DefaultPatience = 30 * time.Second
)

func (c *Config) fill() {
	if c.Mount == "" {
		c.Mount = DefaultMount
	}
	if c.Timeout == 0 {
		c.Timeout = Duration(DefaultTimeout)
	}
	if c.Patience == 0 {
		c.Patience = Duration(DefaultPatience)
	}
	if a := c.Login.AppRole; a != nil && a.Mount == "" {
		cp := *a
		cp.Mount = "approle"
		c.Login.AppRole = &cp
	}
	if a := c.Login.Cert; a != nil && a.Mount == "" {
		cp := *a
		cp.Mount = "cert"
		c.Login.Cert = &cp
	}
}

// Validate checks the configuration and names the field that is wrong.
func (c Config) Validate() error {
	c.fill()
	if len(c.Addresses) == 0 {
		return errors.New("keystore/vault: addresses: none: write https://host:8200, or set VAULT_ADDR")
	}
	for i, a := range c.Addresses {
		if err := checkAddress(a); err != nil {
			return fmt.Errorf("keystore/vault: addresses[%d]: %w", i, err)
		}
	}
	if err := checkMount(c.Mount); err != nil {
		return err
	}
	if c.Station != "" {
		if err := checkName("station", c.Station); err != nil {
			return err
		}
	}
	if strings.ContainsAny(c.Namespace, "\r\n \t") || strings.Contains(c.Namespace, "..") {
		return errors.New("keystore/vault: namespace: write its path, for example factory/line1")
	}
	return c.Login.validate()
}

func checkAddress(a string) error {
	u, err := url.Parse(a)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/") {
		return fmt.Errorf("%q is not an address: write https://host:8200", a)
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsLoopback() {
			return nil
		}
		return fmt.Errorf("%q: keys would travel in clear: write https:// (http:// is for a server on 127.0.0.1)", a)
	}
	return fmt.Errorf("%q is not an address: write https://host:8200", a)
}

func (l Login) validate() error {
	ways := 0
	if a := l.AppRole; a != nil {
		ways++
		if a.RoleIDFile == "" || a.SecretIDFile == "" {
			return errors.New("keystore/vault: login.approle: write role_id_file and secret_id_file")
		}
		if err := checkMount(a.Mount); err != nil {
			return fmt.Errorf("login.approle: %w", err)
		}
	}
	if c := l.Cert; c != nil {
		ways++
		if c.CertFile == "" || c.KeyFile == "" {
			return errors.New("keystore/vault: login.cert: write cert_file and key_file")
		}
		if err := checkMount(c.Mount); err != nil {
			return fmt.Errorf("login.cert: %w", err)
		}
	}
	if l.TokenFile != "" {
		ways++
	}
	if ways != 1 {
		return fmt.Errorf("keystore/vault: login: %d ways are given: write one of approle, cert and token_file", ways)
	}
	return nil
}

// path resolves a file name of the configuration.
func (c Config) path(name string) (string, error) {
	if cred, ok := strings.CutPrefix(name, "credential:"); ok {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return "", fmt.Errorf("keystore/vault: %s: there is no credentials directory: run under systemd with LoadCredential=%s:…", name, cred)
		}
		if cred == "" || cred != filepath.Base(cred) || cred == ".." || cred == "." {
			return "", fmt.Errorf("keystore/vault: %s: write credential:NAME", name)
		}
		return filepath.Join(dir, cred), nil
	}
	if !filepath.IsAbs(name) && c.dir != "" {
		name = filepath.Join(c.dir, name)
	}
	return name, nil
}

// maxSecretFile bounds what is read of a file that holds a token or an id.
const maxSecretFile = 64 << 10

// readSecret reads a file that nobody else may read. One newline at its end is
// not part of it.
func (c Config) readSecret(name string) (string, error) {
	path, err := c.path(name)
	if err != nil {
		return "", err
	}
	b, err := readPrivate(path)
	if err != nil {
		return "", err
	}
	s := strings.TrimSpace(string(b))
	clear(b)
	if s == "" {
		return "", fmt.Errorf("keystore/vault: %s is empty", path)
	}
	return s, nil
}

func readPrivate(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a fifo must not hang us
	if err != nil {
		return nil, fmt.Errorf("keystore/vault: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(path, st); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(b) > maxSecretFile {
		err = fmt.Errorf("keystore/vault: %s is larger than %d bytes", path, maxSecretFile)
	}
	return b, err
}

// checkPrivate wants a plain file that only its owner may read, and that is ours
// or root's. Files in systemd's credentials directory are 0440 on some versions;
// the directory itself is private.
func checkPrivate(path string, st fs.FileInfo) error {
	forbidden := fs.FileMode(0o077)
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && filepath.Dir(path) == filepath.Clean(dir) {
		forbidden = 0o037
	}
	switch {
	case !st.Mode().IsRegular():
		return fmt.Errorf("keystore/vault: %s is not a plain file", path)
	case st.Mode().Perm()&forbidden != 0:
		return fmt.Errorf("keystore/vault: %s has mode %04o: others may read it: look who did, then: chmod 600 %s", path, st.Mode().Perm(), path)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("keystore/vault: %s belongs to another user: chown it to the one that runs provisiond", path)
	}
	return nil
}
