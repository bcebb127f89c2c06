package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/provision/report"
)

// rawClient is HashiCorp's client as its documentation shows it. On its way to the
// server there may be something between.
func rawClient(b *testing.B, x *site, token string, between ...func(http.RoundTripper) http.RoundTripper) *api.Client {
	b.Helper()
	cfg := api.DefaultConfig()
	cfg.Address = x.srv.Addr
	if err := cfg.ConfigureTLS(&api.TLSConfig{CACert: x.srv.CA.File}); err != nil {
		b.Fatal(err)
	}
	own := cfg.HttpClient.Transport.(*http.Transport)
	b.Cleanup(own.CloseIdleConnections)
	for _, f := range between {
		cfg.HttpClient.Transport = f(cfg.HttpClient.Transport)
	}
	c, err := api.NewClient(cfg)
	if err != nil {
		b.Fatal(err)
	}
	c.SetToken(token)
	return c
}

// rounds runs work in rounds with n workers and gives the operations per second.
func rounds(b *testing.B, workers, ops int, work func(i int) error) float64 {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1))
				if i > ops {
					return
				}
				if err := work(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(ops) / time.Since(start).Seconds()
}

// BenchmarkCustody compares create and confirm with the raw client, in turns
// against the same server over TLS. There it is create with cas=0 and a read of
// subkeys; here Create and Confirm. "all" has the claim in it, four requests to
// two; "reserved" has it made before, as the engine does before it writes the
// flash, and is two requests to two.
func BenchmarkCustody(b *testing.B) {
	for _, server := range []string{"memory", "raft", "raft and audit file"} {
		var srv *vaulttest.Server
		if server == "memory" {
			srv = vaulttest.New(b)
		} else {
			srv = vaulttest.Raft(b)
		}
		x := newSite(b, srv, "kv", true)
		if strings.HasSuffix(server, "audit file") {
			srv.EnableAudit(b, "")
		}
		token := x.token(b, RoleStation)
		s, err := Open(b.Context(), x.config(b, token))
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		raw := rawClient(b, x, token)
		unit := 0
		for _, c := range []struct {
			workers  int
			reserved bool
		}{{1, true}, {32, true}, {1, false}, {32, false}} {
			workers := c.workers
			how := map[bool]string{true: "reserved", false: "all"}[c.reserved]
			b.Run(fmt.Sprintf("%s/%s/%d", server, how, workers), func(b *testing.B) {
				const ops = 200
				var turns []turn
				for b.Loop() {
					unit += 2 * ops
					base := unit
					// The same bytes for both, made before the clock starts.
					type item struct {
						path string
						data map[string]any
					}
					items := make([]item, ops+1)
					for i := range items {
						r := keystoretest.NewRecord(b, benchUnit(base+i))
						body, _, err := encodeRecord(r)
						if err != nil {
							b.Fatal(err)
						}
						items[i].path = recordPath(r.Unit, r.Fingerprint)
						if err := json.Unmarshal(body[len(cas0):len(body)-1], &items[i].data); err != nil {
							b.Fatal(err)
						}
					}
					records := make([]keystore.Record, ops+1)
					for i := range records {
						records[i] = keystoretest.NewRecord(b, benchUnit(base+ops+i))
					}
					if c.reserved {
						rounds(b, workers, ops, func(i int) error { return s.Reserve(b.Context(), records[i].Meta()) })
					}
					turns = append(turns, inTurns(len(turns), func() float64 {
						return rounds(b, workers, ops, func(i int) error {
							if _, err := raw.KVv2("kv").Put(b.Context(), items[i].path, items[i].data, api.WithCheckAndSet(0)); err != nil {
								return err
							}
							_, err := raw.Logical().ReadWithContext(b.Context(), "kv/subkeys/"+items[i].path)
							return err
						})
					}, func() float64 {
						return rounds(b, workers, ops, func(i int) error {
							r := records[i]
							if _, err := s.Create(b.Context(), r); err != nil {
								return err
							}
							_, err := s.Confirm(b.Context(), r.Unit, r.Fingerprint)
							return err
						})
					}))
				}
				reportTurns(b, turns)
			})
		}
	}
}

func benchUnit(n int) chip.MAC {
	return chip.MAC{2, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// turn is one round of each, directly after one another.
type turn struct{ raw, ours float64 }

func (t turn) ratio() float64 { return t.ours / t.raw }

// inTurns runs both, the raw client first in every other turn: what else the
// machine does then hits both alike.
func inTurns(n int, raw, ours func() float64) turn {
	if n%2 == 0 {
		r := raw()
		return turn{r, ours()}
	}
	o := ours()
	return turn{raw(), o}
}

// reportTurns gives medians: of the rates, and of the turns' ratios.
func reportTurns(b *testing.B, turns []turn) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(turns, func(t turn) float64 { return t.raw }), "raw/s")
	b.ReportMetric(median(turns, func(t turn) float64 { return t.ours }), "ours/s")
	b.ReportMetric(100*median(turns, turn.ratio), "%")
}

func median(turns []turn, of func(turn) float64) float64 {
	var v []float64
	for _, t := range turns {
		v = append(v, of(t))
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// counter counts requests.
type counter struct {
	next http.RoundTripper
	n    atomic.Int64
}

func (c *counter) RoundTrip(req *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return c.next.RoundTrip(req)
}

// filled is a site with many units.
type filled struct {
	x        *site
	count    int                    // of units, from benchUnit(1) on
	prints   []keystore.Fingerprint // of their keys
	finished func(i int) bool
	token    string // an auditor's
	auditor  *Store
}

// fillSite makes as many units as PROVISIOND_BENCH_UNITS says, 2,000 without it.
func fillSite(b *testing.B, finished func(i int) bool) *filled {
	b.Helper()
	f := &filled{count: 2000, finished: finished}
	if n := os.Getenv("PROVISIOND_BENCH_UNITS"); n != "" {
		if _, err := fmt.Sscan(n, &f.count); err != nil {
			b.Fatal(err)
		}
	}
	f.x = newSite(b, vaulttest.New(b), "kv", true)
	s := f.x.open(b, RoleStation)
	f.prints = make([]keystore.Fingerprint, f.count+1)
	rounds(b, 32, f.count, func(i int) error {
		r := keystoretest.NewRecord(b, benchUnit(i))
		f.prints[i] = r.Fingerprint
		if _, err := s.Create(b.Context(), r); err != nil || !finished(i) {
			return err
		}
		for _, kind := range []keystore.StateKind{keystore.MayBeInSilicon, keystore.InSilicon} {
			if _, err := s.AddState(b.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: kind, Job: r.Job}); err != nil {
				return err
			}
		}
		return nil
	})
	f.token = f.x.token(b, RoleAuditor)
	var err error
	if f.auditor, err = Open(b.Context(), f.x.config(b, f.token)); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.auditor.Close() })
	return f
}

// requests gives the reads and lists of HashiCorp's client.
func requests(b *testing.B, raw *api.Client) (read, list func(path string) error) {
	b.Helper()
	return func(path string) error {
			_, err := raw.Logical().ReadWithContext(b.Context(), path)
			return err
		}, func(path string) error {
			_, err := raw.Logical().ListWithContext(b.Context(), path)
			return err
		}
}

// BenchmarkCheck lists and checks many units (PROVISIOND_BENCH_UNITS, 2,000
// without it), of which every tenth is finished. The raw client makes the same
// requests, and looks at nothing; "% of plain" compares the rate of our requests
// with that of the raw client reading one record's metadata after another.
func BenchmarkCheck(b *testing.B) {
	f := fillSite(b, func(i int) bool { return i%10 == 0 })
	count, prints, auditor := f.count, f.prints, f.auditor
	asked := &counter{next: auditor.c.web.Transport}
	auditor.c.web.Transport = asked
	read, list := requests(b, rawClient(b, f.x, f.token))
	var turns, plain []turn
	var peak uint64
	for b.Loop() {
		var perRequest float64
		turns = append(turns, inTurns(len(turns), func() float64 {
			if err := list("kv/metadata/units"); err != nil {
				b.Fatal(err)
			}
			for shard := range min(count, 256) {
				if err := list(fmt.Sprintf("kv/metadata/units/%02x", shard)); err != nil {
					b.Fatal(err)
				}
			}
			return rounds(b, workers, count, func(i int) error {
				u, fp := benchUnit(i), prints[i]
				err := errors.Join(
					list("kv/metadata/"+unitPath(u)),
					read("kv/data/"+claimPath(u, 1)),
					read("kv/subkeys/"+recordPath(u, fp)),
					read("kv/data/"+claimPath(u, 2)))
				for n := 1; i%10 == 0 && n <= 3; n++ {
					err = errors.Join(err, read("kv/data/"+statePath(u, fp, n)))
				}
				return err
			})
		}, func() float64 {
			asked.n.Store(0)
			stop := watchHeap(&peak)
			start := time.Now()
			rep, err := keystore.Check(b.Context(), auditor, keystore.CheckOptions{Found: func(f keystore.Finding) { b.Error(f) }})
			took := time.Since(start).Seconds()
			stop()
			if err != nil || rep.Records != count || rep.InSilicon != count/10 {
				b.Fatal(rep, err)
			}
			perRequest = float64(asked.n.Load()) / took
			return float64(count) / took
		}))
		plain = append(plain, turn{rounds(b, workers, count, func(i int) error {
			return read("kv/subkeys/" + recordPath(benchUnit(i), prints[i]))
		}), perRequest})
	}
	reportTurns(b, turns)
	b.ReportMetric(100*median(plain, turn.ratio), "%-of-plain")
	b.ReportMetric(float64(asked.n.Load())/float64(count), "requests/unit")
	b.ReportMetric(float64(peak)/(1<<20), "peak-heap-MiB")
}

// far is a way to a server that is a while away.
type far struct {
	next http.RoundTripper
	trip time.Duration
}

func (f far) RoundTrip(req *http.Request) (*http.Response, error) {
	t := time.NewTimer(f.trip)
	defer t.Stop()
	select {
	case <-t.C:
		return f.next.RoundTrip(req)
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

// BenchmarkInventory lists the key records of many units (as BenchmarkCheck), of
// which nine of ten are finished, as the audit does: report.KeystoreLines, each
// line written. The raw client makes the same requests with as many workers, and
// looks at nothing. "far" puts 5 ms before each request of both.
func BenchmarkInventory(b *testing.B) {
	f := fillSite(b, func(i int) bool { return i%10 > 0 })
	way := f.auditor.c.web.Transport
	defer func() { f.auditor.c.web.Transport = way }()
	for _, c := range []struct {
		name string
		trip time.Duration
	}{{"near", 0}, {"far", 5 * time.Millisecond}} {
		b.Run(c.name, func(b *testing.B) {
			var theirs, ours *counter
			distant := func(count **counter) func(http.RoundTripper) http.RoundTripper {
				return func(next http.RoundTripper) http.RoundTripper {
					if c.trip > 0 {
						next = far{next, c.trip}
					}
					*count = &counter{next: next}
					return *count
				}
			}
			read, list := requests(b, rawClient(b, f.x, f.token, distant(&theirs)))
			f.auditor.c.web.Transport = distant(&ours)(way)
			var turns []turn
			var peak uint64
			for b.Loop() {
				turns = append(turns, inTurns(len(turns), func() float64 {
					theirs.n.Store(0)
					return f.rawInventory(b, read, list)
				}, func() float64 {
					ours.n.Store(0)
					defer watchHeap(&peak)()
					return f.inventory(b)
				}))
			}
			reportTurns(b, turns)
			b.ReportMetric(float64(theirs.n.Load())/float64(f.count), "raw-requests/unit")
			b.ReportMetric(float64(ours.n.Load())/float64(f.count), "requests/unit")
			b.ReportMetric(float64(peak)/(1<<20), "peak-heap-MiB")
		})
	}
}

// inventory gives the units per second of the audit's list.
func (f *filled) inventory(b *testing.B) float64 {
	b.Helper()
	start := time.Now()
	lines, finished := 0, 0
	var line []byte
	err := report.KeystoreLines(b.Context(), f.auditor, func(k report.KeyLine) error {
		line = k.Append(line[:0])
		if lines++; k.State == keystore.InSilicon {
			finished++
		}
		return nil
	})
	if err != nil || lines != f.count || finished != f.count-f.count/10 {
		b.Fatal(lines, finished, err)
	}
	return float64(f.count) / time.Since(start).Seconds()
}

// rawInventory gives the units per second of the same requests.
func (f *filled) rawInventory(b *testing.B, read, list func(path string) error) float64 {
	b.Helper()
	start := time.Now()
	if err := list("kv/metadata/units"); err != nil {
		b.Fatal(err)
	}
	rounds(b, workers, min(f.count, 256), func(i int) error { return list(fmt.Sprintf("kv/metadata/units/%02x", byte(i))) })
	rounds(b, workers, f.count, func(i int) error {
		u, fp := benchUnit(i), f.prints[i]
		err := errors.Join(read("kv/data/"+claimPath(u, 1)), read("kv/subkeys/"+recordPath(u, fp)))
		for n := 1; n == 1 || f.finished(i) && n <= 3; n++ {
			err = errors.Join(err, read("kv/data/"+statePath(u, fp, n)))
		}
		return errors.Join(err, read("kv/data/"+claimPath(u, 2)))
	})
	return float64(f.count) / time.Since(start).Seconds()
}

// watchHeap notes by how much the heap's objects grow at most, until it is stopped.
func watchHeap(peak *uint64) (stop func()) {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	now := func() uint64 { metrics.Read(sample); return sample[0].Value.Uint64() }
	runtime.GC()
	base := now()
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if n := now(); n > base {
					*peak = max(*peak, n-base)
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-over }
}
