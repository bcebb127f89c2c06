package shift_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station"
)

// BenchmarkSlots runs the daemon with one slot and with sixty-four, at 921,600
// baud each, paced as a UART is. With sim:// slots the boards are in the daemon's
// process: its processor time is that of both. Behind serial servers they are in a
// process of their own, whose time is reported apart, and every exchange crosses
// two processes and the network's stack.
//
//	go test ./internal/shift -run xxx -bench Slots -benchtime 1x
func BenchmarkSlots(b *testing.B) {
	bin, farmBin := buildBench(b)
	b.Run("sim", func(b *testing.B) { benchmarkSlots(b, bin, "") })
	b.Run("serial-server", func(b *testing.B) { benchmarkSlots(b, bin, farmBin) })
}

func benchmarkSlots(b *testing.B, bin, farmBin string) {
	for range b.N {
		alone := runSlots(b, bin, farmBin, 1, 4)
		all := runSlots(b, bin, farmBin, 64, 3)
		mean := average(alone.bySlot["S00"])
		worst, sum := 2.0, 0.0
		for _, runs := range all.bySlot {
			r := mean / average(runs)
			worst, sum = min(worst, r), sum+r
		}
		b.ReportMetric(mean, "s/unit-alone")
		b.ReportMetric(100*sum/float64(len(all.bySlot)), "%-of-alone-mean")
		b.ReportMetric(100*worst, "%-of-alone-worst-slot")
		b.ReportMetric(all.cores, "cores")
		b.ReportMetric(all.farmCores, "cores-of-the-simulators")
		b.ReportMetric(float64(all.rss)/1024, "MB")
	}
}

type measured struct {
	bySlot           map[string][]float64 // seconds of each unit
	cores, farmCores float64
	rss              int64 // kB
}

func average(s []float64) float64 {
	sum := 0.0
	for _, v := range s {
		sum += v
	}
	return sum / float64(max(len(s), 1))
}

func buildBench(b *testing.B) (bin, farmBin string) {
	b.Helper()
	dir := b.TempDir()
	for _, pkg := range []string{"./cmd/provisiond", "./internal/farm"} {
		cmd := exec.Command("go", "build", "-o", dir, pkg)
		cmd.Dir = filepath.Join("..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
	}
	return filepath.Join(dir, "provisiond"), filepath.Join(dir, "farm")
}

// runSlots puts each boards through each of n slots.
func runSlots(b *testing.B, bin, farmBin string, n, each int) measured {
	b.Helper()
	dir := b.TempDir()
	run := func(args ...string) {
		b.Helper()
		cmd := exec.Command(bin, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	write := func(name, text string) {
		b.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	run("keystore", "init", "--test", "keystore.db")
	run("journal", "init", "journal.db", "--station", "bench")
	m, err := chip.ByName("esp32c3")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := sample.Write(dir, sample.Product{Chip: m, Name: "c3", Profile: "release", AppSize: 900 << 10, AppSpace: 0x100000, Baud: 921600}); err != nil {
		b.Fatal(err)
	}
	var f *farm
	if farmBin != "" {
		f = newFarm(b, farmBin, "-pace")
	}
	farmTime := func() float64 {
		if f == nil {
			return 0
		}
		return f.must(request{Op: "stats"}).Seconds
	}
	var ports strings.Builder
	made := 0
	insert := func(i int) {
		made++
		f.must(request{Op: "insert", Slot: i, Chip: "esp32c3", MAC: chip.MAC{0x02, 0xBE, 0, 0, byte(made >> 8), byte(made)}})
	}
	for i := range n {
		if f == nil {
			fmt.Fprintf(&ports, "---\nslot: S%02d\nport: sim://esp32c3\n", i)
			continue
		}
		insert(i)
		fmt.Fprintf(&ports, "---\nslot: S%02d\nport: rfc2217://%s\n", i, f.address[i])
	}
	if err := os.Mkdir(filepath.Join(dir, "ports.d"), 0o755); err != nil {
		b.Fatal(err)
	}
	write("ports.d/all.yaml", strings.TrimPrefix(ports.String(), "---\n"))
	write("tokens", fmt.Sprintf("operator engineer %x\n", sha256.Sum256([]byte("shift-token-0123456789"))))
	s := &shift{url: "http://" + freeAddress(b)}
	write("station.yaml", fmt.Sprintf("station: bench\nstate: state\njournal: {file: journal.db}\nkeystore: keystore.db\nrecipes: [c3.yaml]\nports: ports.d\nsimulated: {paced: true, pause: 100ms, units: %d}\nweb: {listen: %q, tokens: tokens}\n",
		each, strings.TrimPrefix(s.url, "http://")))

	cmd := exec.Command(bin, "run", "--config", "station.yaml")
	cmd.Dir = dir
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	for i := 0; ; i++ {
		if _, err := s.view(); err == nil {
			break
		} else if i == 600 {
			b.Fatalf("%v\n%s", err, &errOut)
		}
		time.Sleep(100 * time.Millisecond)
	}
	began, cpu, farmCPU := time.Now(), processorTime(b, cmd.Process.Pid), farmTime()
	if err := s.api(http.MethodPost, "lots", station.LotRequest{ID: "b", Recipe: "c3", Quantity: n * each, Forever: true}, nil); err != nil {
		b.Fatal(err)
	}
	done := map[int]int{}
	current := map[int]string{}
	for passed := 0; passed < n*each; {
		v, err := s.view()
		if err != nil {
			b.Fatal(err)
		}
		for i, sv := range v.Slots {
			if f != nil && sv.State == station.SlotPass && sv.Unit != current[i] {
				current[i] = sv.Unit
				done[i]++
				f.must(request{Op: "remove", Slot: i})
				if done[i] < each {
					insert(i)
				}
			}
			if sv.Verdict != "" && sv.Verdict != provision.Pass {
				b.Fatalf("slot %s: %s: %s", sv.Name, sv.Verdict, sv.Reason)
			}
		}
		passed = v.Lots[0].Yield.Pass
		time.Sleep(500 * time.Millisecond)
	}
	wall := time.Since(began).Seconds()
	out := measured{bySlot: map[string][]float64{}, cores: (processorTime(b, cmd.Process.Pid) - cpu) / wall, farmCores: (farmTime() - farmCPU) / wall, rss: peakMemory(b, cmd.Process.Pid)}
	before := uint64(0)
	for {
		var page []station.UnitView
		if err := s.api(http.MethodGet, fmt.Sprintf("history?limit=200&before=%d", before), nil, &page); err != nil {
			b.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			out.bySlot[r.Slot] = append(out.bySlot[r.Slot], float64(r.ElapsedMS)/1000)
		}
		before = page[len(page)-1].Index
	}
	all := slices.Concat(valuesOf(out.bySlot)...)
	slices.SortFunc(all, cmp.Compare[float64])
	b.Logf("%d slots: %d units in %.1f s, of which each took %.2f to %.2f s; %.2f cores and %d MB for the station, %.2f cores for the simulators",
		n, len(all), wall, all[0], all[len(all)-1], out.cores, out.rss>>10, out.farmCores)
	return out
}

func valuesOf(m map[string][]float64) [][]float64 {
	var out [][]float64
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// processorTime is what a process has used, in seconds (proc(5), fields 14, 15).
func processorTime(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	ticks := 0
	for _, i := range []int{11, 12} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return float64(ticks) / 100 // USER_HZ
}

func peakMemory(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatal("no VmHWM")
	return 0
}
