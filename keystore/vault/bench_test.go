package vault

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
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
)

// rawClient is HashiCorp's client as its documentation shows it.
func rawClient(b *testing.B, x *site, token string) *api.Client {
	b.Helper()
	cfg := api.DefaultConfig()
	cfg.Address = x.srv.Addr
	if err := cfg.ConfigureTLS(&api.TLSConfig{CACert: x.srv.CA.File}); err != nil {
		b.Fatal(err)
	}
	c, err := api.NewClient(cfg)
	if err != nil {
		b.Fatal(err)
	}
	c.SetToken(token)
	b.Cleanup(cfg.HttpClient.CloseIdleConnections)
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
// subkeys; here Create and Confirm. "all" has the claim in it, three requests to
// two; "reserved" has it made before, as the engine does while the flash is
// written.
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
				var rawRate, ourRate []float64
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
					rawRate = append(rawRate, rounds(b, workers, ops, func(i int) error {
						if _, err := raw.KVv2("kv").Put(b.Context(), items[i].path, items[i].data, api.WithCheckAndSet(0)); err != nil {
							return err
						}
						_, err := raw.Logical().ReadWithContext(b.Context(), "kv/subkeys/"+items[i].path)
						return err
					}))
					records := make([]keystore.Record, ops+1)
					for i := range records {
						records[i] = keystoretest.NewRecord(b, benchUnit(base+ops+i))
					}
					if c.reserved {
						rounds(b, workers, ops, func(i int) error { return s.Reserve(b.Context(), records[i].Meta()) })
					}
					ourRate = append(ourRate, rounds(b, workers, ops, func(i int) error {
						r := records[i]
						if _, err := s.Create(b.Context(), r); err != nil {
							return err
						}
						_, err := s.Confirm(b.Context(), r.Unit, r.Fingerprint)
						return err
					}))
				}
				report(b, rawRate, ourRate)
			})
		}
	}
}

func benchUnit(n int) chip.MAC {
	return chip.MAC{2, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

func report(b *testing.B, raw, ours []float64) {
	b.Helper()
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	r, o := median(raw), median(ours)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(r, "raw/s")
	b.ReportMetric(o, "ours/s")
	b.ReportMetric(100*o/r, "%")
}

// BenchmarkCheck lists and checks many units (PROVISIOND_BENCH_UNITS, 5,000
// without it) and compares the rate of its requests with that of raw reads.
func BenchmarkCheck(b *testing.B) {
	count := 5000
	if n := os.Getenv("PROVISIOND_BENCH_UNITS"); n != "" {
		if _, err := fmt.Sscan(n, &count); err != nil {
			b.Fatal(err)
		}
	}
	x := newSite(b, vaulttest.New(b), "kv", true)
	s := x.open(b, RoleStation)
	rounds(b, 32, count, func(i int) error {
		_, err := s.Create(b.Context(), keystoretest.NewRecord(b, benchUnit(i)))
		return err
	})
	token := x.token(b, RoleAuditor)
	auditor, err := Open(b.Context(), x.config(b, token))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = auditor.Close() }()
	l := &line{next: auditor.c.web.Transport}
	auditor.c.web.Transport = l
	raw := rawClient(b, x, token)
	var rawRate, ourRate []float64
	var heap uint64
	for b.Loop() {
		l.breakAt(nil)
		start := time.Now()
		stats, err := auditor.Check(b.Context(), func(f Finding) { b.Error(f) })
		if err != nil || stats.Records != count {
			b.Fatal(stats, err)
		}
		took := time.Since(start).Seconds()
		ourRate = append(ourRate, float64(l.count)/took)
		b.ReportMetric(float64(count)/took, "units/s")
		l.breakAt(nil)
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		heap = m.HeapInuse
		rawRate = append(rawRate, rounds(b, checkWorkers, 4*count/4, func(i int) error {
			_, err := raw.Logical().ReadWithContext(b.Context(), filepath.Join("kv/data", claimPath(benchUnit(i), 1)))
			return err
		}))
	}
	report(b, rawRate, ourRate)
	b.ReportMetric(float64(heap)/(1<<20), "heap-MiB")
}
