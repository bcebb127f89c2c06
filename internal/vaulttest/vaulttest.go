// Package vaulttest owns real Vault servers for tests: it finds or builds the
// server, starts it over TLS with an authority of its own, initialises and
// unseals it, and kills it when the test ends. It promises that no test skips
// because there is no server, and that VAULT_* of the developer's environment
// reaches neither server nor client.
//
// The server is a nested module, so that its dependencies stay out of
// provisiond's.
package vaulttest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is one running Vault, or several that form a cluster. The embedded
// Node is the first.
type Server struct {
	*Node
	CA     *CA
	Nodes  []*Node
	Root   string // the root token
	unseal string
	http   *http.Client
}

// Node is one process.
type Node struct {
	Addr   string // https://127.0.0.1:port
	Audit  string // its audit file, once EnableAudit was called
	Net    *Link  // what the other nodes use, if there are Links
	Far    *Link  // for clients, if there are Links
	dir    string
	disk   diskKind
	config string
	bin    string
	s      *Server

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// Option changes a server before it starts.
type Option func(*options)

type options struct {
	raft  bool
	nodes int
	extra string
	disks bool
	links bool
}

// Extra adds lines to the configuration file of every node.
func Extra(hcl string) Option { return func(o *options) { o.extra += hcl + "\n" } }

// Links puts a Link before every node, Node.Net between the nodes and Node.Far
// for clients that are far away.
func Links() Option { return func(o *options) { o.links = true } }

// New starts one server that keeps everything in memory.
func New(t testing.TB, opts ...Option) *Server { return start(t, options{nodes: 1}, opts) }

// Raft starts one server with raft storage on disk.
func Raft(t testing.TB, opts ...Option) *Server { return start(t, options{nodes: 1, raft: true}, opts) }

// Cluster starts n servers (at most three) with raft storage on 127.0.0.1 to 127.0.0.n.
func Cluster(t testing.TB, n int, opts ...Option) *Server {
	return start(t, options{nodes: n, raft: true}, opts)
}

// ClearEnv removes VAULT_* from the environment for the test's time.
func ClearEnv(t testing.TB) {
	t.Helper()
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "VAULT_") || name == "VAULT_BIN" {
			continue
		}
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Setenv(name, value) }) //nolint:usetesting // t.Setenv cannot unset
	}
}

func start(t testing.TB, o options, opts []Option) *Server {
	t.Helper()
	for _, opt := range opts {
		opt(&o)
	}
	ClearEnv(t)
	bin := Binary(t)
	s := &Server{CA: NewCA(t)}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.CA.Pool(), MinVersion: tls.VersionTLS12}}
	s.http = &http.Client{Transport: tr}
	t.Cleanup(tr.CloseIdleConnections)
	cert, key := s.CA.Issue(t, "vault")
	for i := range o.nodes {
		n := newNode(t, s, o, i, bin, cert, key)
		s.Nodes = append(s.Nodes, n)
		n.Start(t)
		t.Cleanup(n.Kill)
		if i == 0 {
			s.Node = n
			s.init(t)
		} else {
			s.must(t, n, "", http.MethodPost, "sys/storage/raft/join", map[string]any{
				"leader_api_addr": s.Nodes[0].Addr, "leader_ca_cert": readFile(t, s.CA.File),
			})
		}
		n.Unseal(t)
		if i == 0 && o.nodes > 1 {
			// A node votes ten seconds after it joined, unless told otherwise. The
			// first node is not active at once.
			s.must(t, n, s.Root, http.MethodPost, "sys/storage/raft/autopilot/configuration", map[string]any{"server_stabilization_time": "1s"})
		}
	}
	if o.nodes > 1 {
		s.awaitVoters(t, o.nodes)
	}
	return s
}

func newNode(t testing.TB, s *Server, o options, i int, bin, cert, key string) *Node {
	t.Helper()
	host := fmt.Sprintf("127.0.0.%d", i+1)
	api, cluster := freePort(t, host), freePort(t, host)
	dir := t.TempDir()
	n := &Node{Addr: "https://" + api, dir: dir, bin: bin, s: s, config: filepath.Join(dir, "vault.hcl")}
	if o.disks {
		n.makeDisk(t)
	}
	advertised := cluster
	if o.links {
		n.Far, n.Net = newLink(t, host, api), newLink(t, host, cluster)
		advertised = n.Net.Addr
	}
	storage := `storage "inmem" {}`
	if o.raft {
		storage = fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = \"node%d\"\n  performance_multiplier = 1\n}", dir, i+1)
	}
	hcl := fmt.Sprintf(`%s
listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_cert_file   = %q
  tls_key_file    = %q
}
api_addr      = %q
cluster_addr  = "https://%s"
disable_mlock = true
log_level     = "info"
%s
`, storage, api, cluster, cert, key, n.Addr, advertised, o.extra)
	if err := os.WriteFile(n.config, []byte(hcl), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// Ports that the system does not give to outgoing connections: such a one would
// take the port of a node that is down for a moment.
const firstPort, lastPort = 12000, 32000

func freePort(t testing.TB, host string) string {
	t.Helper()
	var err error
	for range 100 {
		port := firstPort + rand.N(lastPort-firstPort) //nolint:gosec // no secret
		var l net.Listener
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			defer func() { _ = l.Close() }()
			return l.Addr().String()
		}
	}
	t.Fatal(err)
	return ""
}

// Start starts the process and waits until it answers. It stays sealed.
func (n *Node) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(n.bin, "server", "-config="+n.config) //nolint:noctx // Kill ends it
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = n.dir
	cmd.Env = []string{"HOME=" + n.dir, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = dieWithParent()
	if n.disk == diskReal {
		if err := withDisk(cmd); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	n.mu.Lock()
	n.cmd, n.done = cmd, done
	n.mu.Unlock()
	Eventually(t, patience, "server "+n.Addr+" answers", func() error {
		select {
		case <-done:
			t.Fatalf("vault server ended:\n%s", n.Log())
		default:
		}
		_, _, err := n.s.Do(n, "", http.MethodGet, "sys/seal-status", nil)
		return err
	})
}

// Log is what the process wrote.
func (n *Node) Log() string {
	b, _ := os.ReadFile(filepath.Join(n.dir, "log"))
	return string(b)
}

// Signal sends a signal: SIGSTOP and SIGCONT pause a node.
func (n *Node) Signal(sig syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		_ = n.cmd.Process.Signal(sig)
	}
}

// Kill ends the process at once, as a power cut does.
func (n *Node) Kill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	<-n.done
	n.cmd = nil
}

// Unseal unseals the node and waits until that took effect.
//
// A node that joins a cluster answers at once and unseals itself when the
// leader's data has come. It must not be given the key again meanwhile: Vault
// 1.21.2 then begins its standby loop twice, and the two take each other's
// notices of raft. Such a node does not stop to be active when it loses the
// lead, and answers from a cache that others have written behind.
func (n *Node) Unseal(t testing.TB) {
	t.Helper()
	n.s.must(t, n, "", http.MethodPost, "sys/unseal", map[string]any{"key": n.s.unseal})
	Eventually(t, patience, n.Addr+" is unsealed", func() error {
		status, _, err := n.s.Do(n, "", http.MethodGet, "sys/health?standbyok=true", nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("health is %d", status)
		}
		return err
	})
}

// Seal seals the node.
func (n *Node) Seal(t testing.TB) {
	t.Helper()
	Eventually(t, patience, n.Addr+" is sealed", func() error {
		_, _, err := n.s.Do(n, n.s.Root, http.MethodPost, "sys/seal", nil)
		_, body, serr := n.s.Do(n, "", http.MethodGet, "sys/seal-status", nil)
		if serr == nil && body["sealed"] == true {
			return nil
		}
		return errors.Join(err, serr, fmt.Errorf("%v", body))
	})
}

// StepDown makes the node give up being the leader.
func (n *Node) StepDown(t testing.TB) {
	t.Helper()
	n.s.must(t, n, n.s.Root, http.MethodPost, "sys/step-down", nil)
}

func (s *Server) init(t testing.TB) {
	t.Helper()
	body := s.must(t, s.Node, "", http.MethodPost, "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1})
	s.unseal = body["keys"].([]any)[0].(string) //nolint:forcetypeassert // a test
	s.Root = body["root_token"].(string)        //nolint:forcetypeassert // a test
}

// Addrs are the addresses of all nodes.
func (s *Server) Addrs() []string {
	var addrs []string
	for _, n := range s.Nodes {
		addrs = append(addrs, n.Addr)
	}
	return addrs
}

// Leader waits for a node that is active and gives it.
func (s *Server) Leader(t testing.TB) *Node {
	t.Helper()
	var leader *Node
	Eventually(t, patience, "a leader", func() (err error) {
		leader, err = s.first(func(ctx context.Context, n *Node) error { return s.leads(ctx, n) })
		return err
	})
	return leader
}

func (s *Server) leads(ctx context.Context, n *Node) error {
	status, _, err := s.do(ctx, n, "", http.MethodGet, "sys/health", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("health of %s is %d", n.Addr, status)
	}
	return err
}

// first asks all nodes at once, since one may be paused, and gives the one that
// has no error first. After five seconds it gives up.
func (s *Server) first(ask func(context.Context, *Node) error) (*Node, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	type answer struct {
		n   *Node
		err error
	}
	answers := make(chan answer, len(s.Nodes))
	for _, n := range s.Nodes {
		go func() { answers <- answer{n, ask(ctx, n)} }()
	}
	var errs []error
	for range s.Nodes {
		a := <-answers
		if a.err == nil {
			return a.n, nil
		}
		errs = append(errs, a.err)
	}
	return nil, errors.Join(errs...)
}

func (s *Server) awaitVoters(t testing.TB, n int) {
	t.Helper()
	Eventually(t, patience, "all nodes vote", func() error {
		_, body, err := s.Do(s.Node, s.Root, http.MethodGet, "sys/storage/raft/configuration", nil)
		if err != nil {
			return err
		}
		b, _ := json.Marshal(body)
		if got := bytes.Count(b, []byte(`"voter":true`)); got != n {
			return fmt.Errorf("%d voters", got)
		}
		return nil
	})
	for _, node := range s.Nodes {
		Eventually(t, patience, node.Addr+" knows the leader", func() error {
			_, body, err := s.Do(node, "", http.MethodGet, "sys/leader", nil)
			if addr, _ := body["leader_address"].(string); err != nil || addr == "" {
				return fmt.Errorf("%v %w", body, err)
			}
			return nil
		})
	}
}

// EnableAudit switches on a file audit device on path (the first node's folder
// when path is empty) and gives the path.
func (s *Server) EnableAudit(t testing.TB, path string) string {
	t.Helper()
	if path == "" {
		path = filepath.Join(s.dir, "audit.log")
	}
	options := map[string]any{"file_path": path}
	if _, err := os.Stat(path); err == nil {
		options["mode"] = "0000" // Vault leaves the file's mode alone: it may be a link to /dev/null
	}
	s.Must(t, http.MethodPost, "sys/audit/file", map[string]any{"type": "file", "options": options})
	s.Audit = path
	return path
}

// AwaitWrites waits until the cluster writes, and gives the time at which it did.
// It asks without a pause of more than 20 ms, since it measures.
func (s *Server) AwaitWrites(t testing.TB, path func(try int) string, body any) time.Time {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var err error
	end := time.Now().Add(patience)
	for try := 0; time.Now().Before(end); try++ {
		if err = s.Writes(path(try), body); err == nil {
			return time.Now()
		}
		<-tick.C
	}
	t.Fatalf("the cluster does not write: %v", err)
	return time.Time{}
}

// Writes asks the node that leads at this moment to write an entry: whether the
// cluster works, as its own client sees it.
func (s *Server) Writes(path string, body any) error {
	_, err := s.first(func(ctx context.Context, n *Node) error {
		if err := s.leads(ctx, n); err != nil {
			return err
		}
		status, out, err := s.do(ctx, n, s.Root, http.MethodPut, path, body)
		if err == nil && status >= 300 {
			err = fmt.Errorf("%d %v", status, out)
		}
		return err
	})
	return err
}

// Do sends one request and gives status and body.
func (s *Server) Do(n *Node, token, method, path string, body any) (int, map[string]any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.do(ctx, n, token, method, path, body)
}

func (s *Server) do(ctx context.Context, n *Node, token, method, path string, body any) (int, map[string]any, error) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, n.Addr+"/v1/"+path, bytes.NewReader(b))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("X-Vault-Request", "true")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	out := map[string]any{}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil && resp.StatusCode < 300 && resp.StatusCode != http.StatusNoContent {
		return resp.StatusCode, nil, err
	}
	return resp.StatusCode, out, nil
}

// Must sends a request as root to the first node and ends the test unless it succeeds.
func (s *Server) Must(t testing.TB, method, path string, body any) map[string]any {
	t.Helper()
	return s.must(t, s.Node, s.Root, method, path, body)
}

// must asks again while the server is busy with itself: a young one, and one of a
// cluster that chooses its leader, answer with 5xx for a moment. What got no
// answer at all may have been done and is asked again only if it was not sent.
func (s *Server) must(t testing.TB, n *Node, token, method, path string, body any) (out map[string]any) {
	t.Helper()
	Eventually(t, patience, method+" "+path, func() error {
		status, answer, err := s.Do(n, token, method, path, body)
		var op *net.OpError
		switch {
		case errors.As(err, &op) && op.Op == "dial":
			return err
		case err != nil:
			t.Fatalf("%s %s: %v", method, path, err)
		case status >= 500:
			return fmt.Errorf("%d %v", status, answer)
		case status >= 300:
			t.Fatalf("%s %s: %d %v", method, path, status, answer)
		}
		out = answer
		return nil
	})
	return out
}

// Token makes a token with policies.
func (s *Server) Token(t testing.TB, policies ...string) string {
	t.Helper()
	out := s.Must(t, http.MethodPost, "auth/token/create", map[string]any{"policies": policies, "period": "1h"})
	return out["auth"].(map[string]any)["client_token"].(string) //nolint:forcetypeassert // a test
}

// patience is how long anything may take on a machine that does a lot else. It
// is no measure of anything: what hangs ends the test, and nothing else does.
const patience = 5 * time.Minute

// Eventually asks until f has no error, more and more seldom. It is for other
// processes, whose events cannot be awaited.
func Eventually(t testing.TB, limit time.Duration, what string, f func() error) {
	t.Helper()
	const first, last = 10 * time.Millisecond, 250 * time.Millisecond
	timer := time.NewTimer(0)
	defer timer.Stop()
	wait := first
	for end := time.Now().Add(limit); ; {
		<-timer.C
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		timer.Reset(wait)
		wait = min(wait+wait/4, last)
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
