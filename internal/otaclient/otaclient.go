// Package otaclient owns the test bench of esp/ota_client: it builds the C client
// for the host, under the address and undefined-behaviour sanitizers, and gives it a
// simulated board. It promises that the board decides what a board decides: the
// client writes raw bytes, and whether they are an image, and which one boots, is up
// to the chip's own key in the simulator.
//
// With CI set, a missing gcc or libmbedtls-dev fails the test; elsewhere it skips.
package otaclient

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
)

// flags are those that the component has to stand: C99 and no warning.
var flags = strings.Fields("-std=c99 -O1 -g -Wall -Wextra -Werror -pedantic -Wconversion -Wshadow -Wvla -Wstrict-prototypes " +
	"-fsanitize=address,undefined -fno-sanitize-recover=all -D_POSIX_C_SOURCE=200809L")

// Programs, and what each is made of beside the client's core. "ota_client_esp" goes
// through the tables for ESP-IDF, with functions of ours in place of ESP-IDF's.
var programs = map[string][]string{
	"ota_client":     {"src/crypto_psa.c", "host/http.c", "host/board.c", "host/options.c", "host/main.c"},
	"ota_client_esp": {"src/crypto_psa.c", "src/port_esp.c", "host/http.c", "host/board.c", "host/options.c", "host/idf/idf.c", "-Ihost/idf"},
	"parse":          {"host/http.c", "host/parse.c"},
}

var core = []string{"src/text.c", "src/response.c", "src/record.c", "src/manifest.c", "src/ota_client.c"}

var built struct {
	sync.Mutex
	dir  string
	err  error
	done bool
}

// errNoTools says that this machine cannot build C for the host.
var errNoTools = errors.New("needs gcc and libmbedtls-dev: apt-get install gcc libc6-dev libmbedtls-dev")

// Program gives the path of a program: "ota_client", "ota_client_esp" or "parse".
func Program(t testing.TB, name string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if !built.done {
		built.done = true
		built.dir, built.err = build(t.Context())
	}
	switch {
	case errors.Is(built.err, errNoTools) && os.Getenv("CI") == "":
		t.Skip(built.err)
	case built.err != nil:
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, name)
}

// build compiles into a folder whose name is the hash of the sources, once for all
// test processes.
func build(ctx context.Context) (string, error) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return "", errNoTools
	}
	probe := exec.CommandContext(ctx, gcc, "-E", "-x", "c", "-")
	probe.Stdin = strings.NewReader("#include <psa/crypto.h>\n")
	if probe.Run() != nil {
		return "", errNoTools
	}
	source, err := sourceDir()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, _ = fmt.Fprintln(sum, flags, programs, core)
	for _, pattern := range []string{"include/*.h", "src/*", "host/*.[ch]", "host/idf/*"} {
		names, err := filepath.Glob(filepath.Join(source, pattern))
		if err != nil {
			return "", err
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				return "", err
			}
			_, _ = fmt.Fprintf(sum, "%s %d\n%s", filepath.Base(name), len(b), b)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(cache, "provisiond")
	dir := filepath.Join(parent, fmt.Sprintf("ota-client-%x", sum.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(parent, 0o750); err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp(parent, "building-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(temp) }()
	for name, files := range programs {
		args := slices.Concat(flags, []string{"-Iinclude", "-Isrc", "-Ihost", "-o", filepath.Join(temp, name)}, core, files, []string{"-lmbedcrypto"})
		cmd := exec.CommandContext(ctx, gcc, args...)
		cmd.Dir = source
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("gcc: esp/ota_client: %w\n%s", err, out)
		}
	}
	// Another process may have been faster.
	if err := os.Rename(temp, dir); err != nil {
		if _, there := os.Stat(dir); there != nil {
			return "", err
		}
	}
	return dir, nil
}

func sourceDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("no path of this source")
	}
	dir := filepath.Join(filepath.Dir(file), "..", "..", "esp", "ota_client")
	_, err := os.Stat(filepath.Join(dir, "CMakeLists.txt"))
	return dir, err
}

// Client is what the firmware is built and configured with.
type Client struct {
	Server        string // host:port
	Signer        *ecdsa.PublicKey
	TokenFile     string
	Version       string
	SecureVersion uint32
	Request       uint32 // bytes of one request; 0: the client's default
	SaveEvery     uint32 // sectors; 0: the client's default
	Program       string // "ota_client" if it is empty
}

// Result is what one act of the client came to.
type Result struct {
	Act        string // init, update, confirm, report, forget
	Err        string // "ok", or the error's name
	Status     int    // of the last HTTP answer
	RetryAfter int    // seconds
	Fetched    int    // bytes of ciphertext since the client's start
	Boot       string // normal, new, rolled-back
}

// Moment is when power fails in an operation on the board, or that the operation fails.
type Moment uint8

// The moments.
const (
	Never Moment = iota
	Before
	Within // some of it is done
	After
	Fails // power stays: the board does not do it and says so
)

// Op is an operation of the client on its board, as host/board.h lists them.
type Op byte

// Operations that change the board.
const (
	OpErase   Op = 'E'
	OpWrite   Op = 'W'
	OpSave    Op = 'V'
	OpSetBoot Op = 'B'
	OpConfirm Op = 'C'
)

// Changes reports whether an operation changes what lives through a loss of power.
func (o Op) Changes() bool { return strings.ContainsRune("EWVBC", rune(o)) }

// Board is a simulated board with an app that takes updates. Its record is what NVS
// is on a device: it is kept whole or not at all.
type Board struct {
	Chip   *espsim.Chip
	Record []byte

	// Cut is asked before each operation that changes something; n counts them from 1
	// in one run of the client, addr is the flash address of those on the flash. nil:
	// power never fails.
	Cut func(n int, op Op, addr uint32) Moment
	// Said is what the chip logged when it last checked an image.
	Said string

	app *espsim.App
}

// Run starts the client for the app that runs on the board, does the acts and gives
// their results, that of "init" first. cut reports that power failed: the client was
// killed as it was, and the board is powered again.
func (b *Board) Run(t testing.TB, c Client, acts ...string) (results []Result, cut bool) {
	t.Helper()
	app, err := b.Chip.App()
	if err != nil {
		t.Fatalf("%v\n%s", err, b.Chip.BootText())
	}
	b.app = app
	host, port, err := net.SplitHostPort(c.Server)
	if err != nil {
		t.Fatal(err)
	}
	point, err := c.Signer.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"--server", host, port, "--mac", b.Chip.MAC().String(), "--chip", b.Chip.Model().Name,
		"--key", hex.EncodeToString(point.Bytes()[1:]), "--secure-version", strconv.FormatUint(uint64(c.SecureVersion), 10),
	}
	if c.TokenFile != "" {
		args = append(args, "--token-file", c.TokenFile)
	}
	if c.Version != "" {
		args = append(args, "--version", c.Version)
	}
	if c.Request != 0 {
		args = append(args, "--request", strconv.FormatUint(uint64(c.Request), 10))
	}
	if c.SaveEvery != 0 {
		args = append(args, "--save-every", strconv.FormatUint(uint64(c.SaveEvery), 10))
	}
	cmd := exec.CommandContext(t.Context(), Program(t, cmp.Or(c.Program, "ota_client")), append(args, acts...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	results, err = b.serve(out, in)
	if cut = errors.Is(err, errCut); cut {
		_ = cmd.Process.Kill() // SIGKILL: the app does not see it come
	}
	_ = in.Close()
	_, _ = io.Copy(io.Discard, out)
	waited := cmd.Wait()
	switch {
	case cut:
		b.PowerCycle()
		return results, true
	case err != nil:
		t.Fatalf("the client's board: %v\n%s", err, &stderr)
	case waited != nil:
		t.Fatalf("the client: %v\n%s", waited, &stderr)
	case len(results) != len(acts)+1 && results[0].Err == "ok":
		t.Fatalf("%d results of %d acts: %+v\n%s", len(results), len(acts), results, &stderr)
	}
	return results, false
}

// PowerCycle turns the board off and on.
func (b *Board) PowerCycle() {
	b.Chip.Power(false)
	b.Chip.Power(true)
}

var (
	errCut  = errors.New("power failed")
	errHead = errors.New("the client's request is none")
)

// Answers to the client.
const (
	answerOK = iota
	answerValidate
	answerSecureVersion
	answerError
)

// maxPayload is more than the client ever sends at once.
const maxPayload = 64 << 10

// serve answers the client until it closes its end.
func (b *Board) serve(from io.Reader, to io.Writer) (results []Result, err error) {
	for n := 0; ; {
		var head [9]byte
		if _, err := io.ReadFull(from, head[:]); errors.Is(err, io.EOF) {
			return results, nil
		} else if err != nil {
			return results, err
		}
		op, addr, size := Op(head[0]), binary.LittleEndian.Uint32(head[1:]), binary.LittleEndian.Uint32(head[5:])
		var data []byte
		if strings.ContainsRune("WVX", rune(op)) {
			if size > maxPayload {
				return results, fmt.Errorf("%w: %d bytes with %c", errHead, size, op)
			}
			data = make([]byte, size)
			if _, err := io.ReadFull(from, data); err != nil {
				return results, err
			}
		}
		if op == 'X' {
			r, err := parseResult(string(data))
			if err != nil {
				return results, err
			}
			results = append(results, r)
		}
		moment := Never
		if op.Changes() {
			n++
			if b.Cut != nil {
				moment = b.Cut(n, op, addr)
			}
		}
		if moment == Before {
			return results, errCut
		}
		code, answer, err := byte(answerError), []byte(nil), error(nil)
		if moment != Fails {
			code, answer, err = b.do(op, addr, size, data, moment == Within)
		}
		if err != nil {
			return results, err
		}
		if moment == Within || moment == After {
			return results, errCut
		}
		reply := binary.LittleEndian.AppendUint32([]byte{code}, uint32(len(answer)))
		if _, err := to.Write(append(reply, answer...)); err != nil {
			return results, err
		}
	}
}

func parseResult(s string) (r Result, err error) {
	_, err = fmt.Sscanf(s, "%s %s %d %d %d %s", &r.Act, &r.Err, &r.Status, &r.RetryAfter, &r.Fetched, &r.Boot)
	if err != nil {
		err = fmt.Errorf("%w: result %q: %w", errHead, s, err)
	}
	return r, err
}

// do acts on the board. An error is a mistake of the client or the bench; what a
// board refuses is an answer.
func (b *Board) do(op Op, addr, size uint32, data []byte, partly bool) (code byte, answer []byte, err error) {
	switch op {
	case 'S':
		next, err := b.app.Next()
		return status(err), append(slot(b.app.Running()), slot(next)...), nil
	case 's':
		s, err := b.state(addr)
		return status(err), []byte{s}, nil
	case 'R':
		if size > maxPayload {
			return 0, nil, fmt.Errorf("%w: a read of %d bytes", errHead, size)
		}
		p := make([]byte, size)
		return status(b.app.ReadRaw(p, addr)), p, nil
	case OpErase:
		err := b.app.Erase(addr, size)
		if err == nil && partly { // an erase that broke off leaves nobody knows what
			err = b.app.Program(addr, bytes.Repeat([]byte{0xA5, 0xFF, 0x3C}, int(size)/3))
		}
		return status(err), nil, err
	case OpWrite:
		if partly {
			data = data[:len(data)/2]
		}
		return status(b.app.Program(addr, data)), nil, nil
	case OpSetBoot:
		return b.setBoot(addr, partly)
	case OpConfirm:
		return status(b.app.Confirm()), nil, nil
	case 'L':
		return answerOK, b.Record, nil
	case OpSave:
		if !partly {
			b.Record = data
		}
		return answerOK, nil, nil
	case 'X':
		return answerOK, nil, nil
	}
	return 0, nil, fmt.Errorf("%w: operation %q", errHead, byte(op))
}

func status(err error) byte {
	if err != nil {
		return answerError
	}
	return answerOK
}

func slot(p bootrom.Partition) []byte {
	out := make([]byte, 8, 16)
	copy(out, p.Name)
	out = binary.LittleEndian.AppendUint32(out, p.Offset)
	return binary.LittleEndian.AppendUint32(out, p.Size)
}

// partition finds what the app knows at an address: its own partition or the next slot.
func (b *Board) partition(addr uint32) (bootrom.Partition, error) {
	if p := b.app.Running(); p.Offset == addr {
		return p, nil
	}
	p, err := b.app.Next()
	if err == nil && p.Offset != addr {
		err = fmt.Errorf("no slot at 0x%x", addr)
	}
	return p, err
}

// state is provisiond_ota_state.
func (b *Board) state(addr uint32) (byte, error) {
	p, err := b.partition(addr)
	if err != nil {
		return 0, err
	}
	s, err := b.app.State(p)
	switch {
	case errors.Is(err, bootrom.ErrNotFound): // the factory app, or a slot never chosen
		return 0, nil
	case err != nil:
		return 0, err
	}
	switch s {
	case bootrom.OTANew:
		return 1, nil
	case bootrom.OTAPendingVerify:
		return 2, nil
	case bootrom.OTAValid:
		return 3, nil
	case bootrom.OTAInvalid, bootrom.OTAAborted:
		return 4, nil
	}
	return 0, nil
}

// setBoot is the board's own check and choice. Power that fails within it fails
// between the erase of otadata's sector and the end of its writing.
func (b *Board) setBoot(addr uint32, partly bool) (byte, []byte, error) {
	p, err := b.partition(addr)
	if err != nil {
		return answerError, nil, nil //nolint:nilerr // the board refuses
	}
	before := func(w bootrom.Write) error {
		if !partly {
			return nil
		}
		return errors.Join(b.Chip.Flash().EraseSector(w.Sector), b.Chip.Flash().Program(w.Sector, w.Data[:len(w.Data)/2]), errCut)
	}
	b.Said, err = b.app.SetBoot(p, before)
	switch {
	case err == nil, errors.Is(err, errCut):
		return answerOK, nil, nil
	case errors.Is(err, bootrom.ErrValidate):
		return answerValidate, nil, nil
	case errors.Is(err, bootrom.ErrSecureVersion):
		return answerSecureVersion, nil, nil
	}
	return answerError, nil, nil
}
