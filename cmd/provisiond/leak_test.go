package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision"
)

// leakRun is how many bytes of a key in a row are a leak.
const leakRun = 8

// searcher finds pieces of keys in whatever was written. Every form in which a
// program prints bytes is turned back into bytes, and these are looked through
// for any run of eight bytes of a key, forwards or backwards, as it stands or
// with the bytes of its words swapped. A 32-bit word that stands alone as a
// number counts too.
type searcher struct {
	runs  map[uint64]string // eight bytes, big-endian: which key
	words map[uint32]string
	near  [1 << 16]bool // the low 16 bits of all runs: most positions end here
}

func newSearcher() *searcher { return &searcher{runs: map[uint64]string{}, words: map[uint32]string{}} }

func (s *searcher) add(name string, key []byte) {
	for _, swapped := range []bool{false, true} {
		for _, backwards := range []bool{false, true} {
			b := bytes.Clone(key)
			if swapped {
				for i := 0; i+4 <= len(b); i += 4 {
					slices.Reverse(b[i : i+4])
				}
			}
			if backwards {
				slices.Reverse(b)
			}
			for i := 0; i+leakRun <= len(b); i++ {
				v := binary.BigEndian.Uint64(b[i:])
				s.runs[v], s.near[v&0xFFFF] = name, true
			}
			for i := 0; i+4 <= len(b); i += 4 {
				s.words[binary.BigEndian.Uint32(b[i:])] = name
			}
		}
	}
}

// search gives what was found, as "key NAME as FORM".
func (s *searcher) search(text []byte) []string {
	var out []string
	tokens := tokenize(text)
	for _, f := range []struct {
		name string
		runs [][]byte
	}{
		{"raw bytes", [][]byte{text}},
		{"UTF-16", [][]byte{everySecond(text), everySecond(text[min(1, len(text)):])}},
		{"hex", hexRuns(text)},
		{"list of numbers", slices.Concat(listRuns(text, tokens, 10), listRuns(text, tokens, 16), listRuns(text, tokens, 8))},
		{"base64", base64Runs(text)},
		{"quoted text", [][]byte{unquoted(text)}},
	} {
		for _, run := range f.runs {
			if name := s.inRun(run); name != "" {
				out = append(out, fmt.Sprintf("key %s as %s", name, f.name))
			}
		}
	}
	for _, t := range tokens {
		for _, n := range t.values(text) {
			if n <= 0xFFFF { // too small to tell from a length or a count
				continue
			}
			if name, ok := s.runs[n]; ok {
				out = append(out, "64 bits of key "+name+" as a number")
			}
			if name, ok := s.words[uint32(n)]; ok && n < 1<<32 {
				out = append(out, "32 bits of key "+name+" as a number")
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// The loops over megabytes of text are free of the race detector, which has
// nothing to find in them and makes them ten times as slow.

// inRun gives the name of a key of which eight bytes are in a run.
//
//go:norace
func (s *searcher) inRun(run []byte) string {
	var v uint64
	for i, b := range run {
		v = v<<8 | uint64(b)
		if i >= leakRun-1 && s.near[v&0xFFFF] {
			if name, ok := s.runs[v]; ok {
				return name
			}
		}
	}
	return ""
}

//go:norace
func everySecond(text []byte) []byte {
	out := make([]byte, 0, len(text)/2+1)
	for i := 0; i < len(text); i += 2 {
		out = append(out, text[i])
	}
	return out
}

// hexValue is a digit's value, or 0xFF.
//
//go:norace
func hexValue(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xFF
}

// hexRuns joins hex digits over everything that a dump puts between them, and
// begins at either digit.
//
//go:norace
func hexRuns(text []byte) [][]byte {
	var out [][]byte
	var digits []byte
	for i := 0; i <= len(text); i++ {
		if i < len(text) {
			c := text[i]
			if c == '0' && i+1 < len(text) && (text[i+1] == 'x' || text[i+1] == 'X') {
				i++
				continue
			}
			if c == '\\' && i+1 < len(text) && text[i+1] == 'x' {
				i++
				continue
			}
			if c == '\\' && i+3 < len(text) && text[i+1] == 'u' && text[i+2] == '0' && text[i+3] == '0' {
				i += 3
				continue
			}
			if v := hexValue(c); v != 0xFF {
				digits = append(digits, v)
				continue
			}
			if separates(c) {
				continue
			}
		}
		for start := range 2 {
			if len(digits) < start+2*leakRun {
				break
			}
			b := make([]byte, 0, len(digits)/2)
			for j := start; j+1 < len(digits); j += 2 {
				b = append(b, digits[j]<<4|digits[j+1])
			}
			out = append(out, b)
		}
		digits = digits[:0]
	}
	return out
}

//go:norace
func separates(c byte) bool {
	switch c {
	case ' ', '\t', '\r', '\n', ':', ',', ';', '.', '-', '_', '|', '"', '\'', '[', ']', '(', ')', '{', '}':
		return true
	}
	return false
}

// token is a number in a text, or a word that can be read as one.
type token struct {
	start, end int
	prefixed   bool // 0x stands before it
	negative   bool
	listed     bool // only commas, brackets and spaces since the token before
}

//go:norace
func tokenize(text []byte) []token {
	var out []token
	listed := false
	for i := 0; i < len(text); {
		c := text[i]
		if c == 'T' && i+1 < len(text) && isClock(text[i+1:]) { // a time stamp, of which there are many, and as random as keys
			for i < len(text) && text[i] != 'Z' && text[i] != '\n' {
				i++
			}
			listed = false
			continue
		}
		if hexValue(c) == 0xFF {
			listed = listed && (c == ',' || c == ';' || c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '[' || c == ']' || c == '{' || c == '}' || c == '(' || c == ')')
			i++
			continue
		}
		t := token{start: i, listed: listed, negative: i > 0 && text[i-1] == '-'}
		if c == '0' && i+1 < len(text) && (text[i+1] == 'x' || text[i+1] == 'X') {
			t.prefixed = true
			t.start += 2
			i += 2
		}
		for i < len(text) && hexValue(text[i]) != 0xFF {
			i++
		}
		t.end = i
		listed = true
		if n := t.end - t.start; n > 0 && n <= 20 {
			out = append(out, t)
		}
	}
	return out
}

// isClock reports a time of day: 17:04:05.
//
//go:norace
func isClock(b []byte) bool { return len(b) >= 8 && b[2] == ':' && b[5] == ':' }

// parse reads the token, or gives false.
//
//go:norace
func (t token) parse(text []byte, base uint64) (uint64, bool) {
	var n uint64
	for _, c := range text[t.start:t.end] {
		v := uint64(hexValue(c))
		if v >= base || n > (1<<64-1-v)/base {
			return 0, false
		}
		n = n*base + v
	}
	return n, true
}

// values are the numbers that a token may stand for.
//
//go:norace
func (t token) values(text []byte) []uint64 {
	if t.end-t.start < 5 {
		return nil
	}
	var out []uint64
	if n, ok := t.parse(text, 16); ok {
		out = append(out, n)
	}
	if n, ok := t.parse(text, 10); ok && !t.prefixed {
		out = append(out, n)
		if t.negative {
			out = append(out, -n, uint64(uint32(-n)))
		}
	}
	return out
}

// listRuns reads [1 2 255], {0x1, 0x2, 0xff}, 001 002 255 and the like.
//
//go:norace
func listRuns(text []byte, tokens []token, base uint64) [][]byte {
	var out [][]byte
	var run []byte
	for i := 0; i <= len(tokens); i++ {
		fits := false
		if i < len(tokens) {
			b := base
			if tokens[i].prefixed {
				b = 16
			}
			n, ok := tokens[i].parse(text, b)
			if fits = ok && n <= 0xFF; fits && (tokens[i].listed || len(run) == 0) {
				run = append(run, byte(n))
				continue
			}
		}
		if len(run) >= leakRun {
			out = append(out, run)
			run = nil
		}
		run = run[:0]
		if fits {
			i-- // it begins the next run
		}
	}
	return out
}

// base64Runs reads both alphabets, beginning at each of the four characters.
//
//go:norace
func base64Runs(text []byte) [][]byte {
	var out [][]byte
	var run []byte
	for i := 0; i <= len(text); i++ {
		if i < len(text) {
			c := text[i]
			switch {
			case c == '-':
				c = '+'
			case c == '_':
				c = '/'
			}
			if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '+' || c == '/' {
				run = append(run, c)
				continue
			}
			if c == '\n' || c == '\r' { // lines are folded
				continue
			}
		}
		for start := range 4 {
			if len(run) < start+12 {
				break
			}
			r := run[start:]
			b := make([]byte, len(r)/4*3)
			if n, err := base64.RawStdEncoding.Decode(b, r[:len(r)/4*4]); err == nil {
				out = append(out, b[:n])
			}
		}
		run = run[:0]
	}
	return out
}

// unquoted undoes the escapes of %q and of JSON, in which a byte may stand as
// \x01, \u0001, \n, as itself, or as the letter with its number.
//
//go:norace
func unquoted(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for s := string(text); len(s) > 0; {
		if s[0] < utf8.RuneSelf && s[0] != '\\' {
			out = append(out, s[0])
			s = s[1:]
			continue
		}
		if s[0] != '\\' {
			r, n := utf8.DecodeRuneInString(s)
			if r > 0 && r < 0x100 && n == 2 { // a byte that was taken for a letter
				out = append(out, byte(r))
			} else {
				out = append(out, s[:n]...)
			}
			s = s[n:]
			continue
		}
		r, multi, rest, err := strconv.UnquoteChar(s, 0)
		switch {
		case err != nil:
			if len(s) > 1 && (s[1] == '"' || s[1] == '/') {
				out = append(out, s[1])
				s = s[2:]
				continue
			}
			out = append(out, s[0])
			s = s[1:]
			continue
		case multi && r > 0xFF:
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, byte(r))
		}
		s = rest
	}
	return out
}

// TestSearcher plants a key in every form, in the middle of other output, and
// demands that the searcher finds it; and nothing where there is nothing.
func TestSearcher(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(rng.UintN(256))
	}
	s := newSearcher()
	s.add("planted", key)

	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.UintN(256))
		}
		return b
	}
	clean := bytes.Join([][]byte{
		noise(4096), []byte(hex.EncodeToString(noise(4096))), []byte(base64.StdEncoding.EncodeToString(noise(4096))),
		fmt.Append(nil, noise(1024)), fmt.Appendf(nil, "%q %#v", noise(512), noise(512)),
	}, []byte("\n"))
	if got := s.search(clean); len(got) > 0 {
		t.Fatalf("found in noise: %v", got)
	}

	reversed := bytes.Clone(key)
	slices.Reverse(reversed)
	jsonString := func(b []byte) string {
		runes := make([]rune, len(b))
		for i, c := range b {
			runes[i] = rune(c)
		}
		out, _ := json.Marshal(string(runes))
		return string(out)
	}
	separated := func(format, sep string, b []byte) string {
		var parts []string
		for _, c := range b {
			parts = append(parts, fmt.Sprintf(format, c))
		}
		return strings.Join(parts, sep)
	}
	planted := map[string]string{}
	for name, b := range map[string][]byte{"key": key, "reversed": reversed, "a run": key[5 : 5+leakRun], "a reversed run": reversed[11 : 11+leakRun]} {
		planted[name+" raw"] = string(b)
		planted[name+" hex"] = hex.EncodeToString(b)
		planted[name+" HEX"] = strings.ToUpper(hex.EncodeToString(b))
		planted[name+" hex spaced"] = separated("%02x", " ", b)
		planted[name+" hex coloned"] = separated("%02X", ":", b)
		planted[name+" hex C"] = separated("0x%02x", ", ", b)
		planted[name+" hex unpadded"] = separated("0x%x", ", ", b)
		planted[name+" decimal list"] = fmt.Sprint(b)
		planted[name+" JSON list"] = separated("%d", ",", b)
		planted[name+" Go syntax"] = fmt.Sprintf("%#v", b)
		planted[name+" quoted"] = fmt.Sprintf("%q", b)
		planted[name+" quoted ASCII"] = fmt.Sprintf("%+q", b)
		planted[name+" JSON string"] = jsonString(b)
		planted[name+" dump"] = hex.Dump(b)[10:58]
		for shift := range 4 {
			padded := append(noise(shift), b...)
			padded = append(padded, noise(3)...)
			planted[fmt.Sprintf("%s base64 +%d", name, shift)] = base64.StdEncoding.EncodeToString(padded)
			planted[fmt.Sprintf("%s base64 URL +%d", name, shift)] = base64.RawURLEncoding.EncodeToString(padded)
		}
		planted[name+" 64 bits"] = fmt.Sprintf("%#x", binary.LittleEndian.Uint64(b))
		planted[name+" 64 bits decimal"] = fmt.Sprint(binary.BigEndian.Uint64(b))
		planted[name+" 64 bits signed"] = fmt.Sprint(int64(binary.BigEndian.Uint64(b)))
	}
	for i := 0; i+4 <= len(key); i += 4 {
		for order, v := range map[string]uint32{"big": binary.BigEndian.Uint32(key[i:]), "little": binary.LittleEndian.Uint32(key[i:])} {
			at := fmt.Sprintf("word %d %s ", i/4, order)
			planted[at+"0x"] = fmt.Sprintf("0x60008800=0x%08x", v)
			planted[at+"hex"] = fmt.Sprintf("\"%08x\"", v)
			planted[at+"HEX"] = fmt.Sprintf("%08X", v)
			planted[at+"decimal"] = fmt.Sprint(v)
			if v >= 1<<31 {
				planted[at+"signed"] = fmt.Sprint(int32(v))
			}
		}
	}
	for name, text := range planted {
		text = "before " + text + " after\n"
		if got := s.search([]byte(text)); len(got) == 0 {
			t.Errorf("%s was not found in %q", name, text)
		}
		if got := s.search(append(bytes.Clone(clean[len(clean)-2000:]), text...)); len(got) == 0 {
			t.Errorf("%s was not found behind other output", name)
		}
	}
}

// TestNoKeyLeaks runs everything that prints, with all the logs there are, and a
// panic in the middle of units, and searches all that was written for the keys.
// Only the keystore file and the simulator's own state are left out; the keystore
// must not hold a key unsealed.
func TestNoKeyLeaks(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	l := &leaks{t: t, root: root, written: map[string][]byte{}, keys: newSearcher()}

	done := make(chan struct{})
	go func() { // the panics, beside the rest
		defer close(done)
		for i, p := range []struct{ step, in string }{
			{"burn-key", ""}, // in the engine's goroutine, which holds the key
			{"burn-key", "provision.(*unit).burnOnce"}, // the key is being burned
			{"burn-key", "efuse.Read"},                 // the key block is being read
			{"protect-key", ""},                        // and can still be
		} {
			l.panics(fmt.Sprintf("panic%d", i), p.step, p.in)
		}
	}()
	l.demo()
	l.readable("esp32c3")
	l.readable("esp32")
	<-done
	if t.Failed() {
		return
	}

	if l.count < 4+4+2 { // the demo's, one at least of every panic, the readable ones
		t.Fatalf("only %d keys to look for", l.count)
	}
	if !l.inBurn {
		t.Error("no panic came in the middle of a burn")
	}
	total := 0
	for name, b := range l.written {
		total += len(b)
		for _, hit := range l.keys.search(b) {
			t.Errorf("%s: %s", name, hit)
		}
	}
	t.Logf("%d keys, %d files, %d bytes", l.count, len(l.written), total)

	// Where keys really are, the same search finds them: in the simulated fuses.
	found := 0
	for _, chipName := range twoChips {
		states, err := filepath.Glob(filepath.Join(root, "readable-"+chipName, boardState, "*"))
		if err != nil || len(states) == 0 {
			t.Fatalf("no state of the %s: %v", chipName, err)
		}
		for _, name := range states {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			found += len(l.keys.search(b))
		}
	}
	if found == 0 {
		t.Error("the keys were not found in the fuses of the simulated chips, which hold them")
	}
	// And one that is added to any of the files.
	canary := make([]byte, 32)
	for i := range canary {
		canary[i] = byte(i*37 + 11)
	}
	l.keys.add("canary", canary)
	for name, b := range l.written {
		if got := l.keys.search(append(bytes.Clone(b[:min(len(b), 1<<16)]), fmt.Sprintf("\n%X\n", canary)...)); len(got) == 0 {
			t.Errorf("a key that was added to %s was not found", name)
		}
	}
}

// leaks collects what was written and the keys of all units.
type leaks struct {
	t    *testing.T
	root string

	mu      sync.Mutex
	written map[string][]byte
	keys    *searcher
	count   int // of keys
	inBurn  bool
}

// boardState is where simulators keep the chip, whose fuses hold the key.
const boardState = "board"

func (l *leaks) put(name string, b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.written[name] = b
}

// files takes everything below a folder, the keystore included: what is sealed
// shows no key.
func (l *leaks) files(dir string) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == boardState:
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		b, err := os.ReadFile(path)
		l.put(path, b)
		return err
	})
	if err != nil {
		l.t.Error(err)
	}
}

// take gets the true keys out of a keystore, with the identity.
func (l *leaks) take(path string) {
	s, err := local.Open(path, local.Options{IdentityFile: path + ".identity"})
	if err != nil {
		l.t.Error(err)
		return
	}
	defer func() { _ = s.Close() }()
	for mac, err := range s.Units(l.t.Context()) {
		if err != nil {
			l.t.Error(err)
			return
		}
		metas, err := s.List(l.t.Context(), mac)
		if err != nil {
			l.t.Error(err)
			return
		}
		for _, m := range metas {
			rec, err := s.Load(l.t.Context(), mac, m.Fingerprint)
			if err != nil {
				l.t.Error(err)
				return
			}
			err = rec.Key.Use(func(key []byte) error {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.count++
				l.keys.add(fmt.Sprintf("%s of %s", mac, filepath.Base(filepath.Dir(filepath.Dir(path)))), key)
				return nil
			})
			if err == nil {
				err = l.derived(rec.Key, mac)
			}
			if err != nil {
				l.t.Error(err)
			}
		}
	}
}

// derived takes what follows from a unit's key: its OTA token and its HMAC key.
func (l *leaks) derived(k keystore.Key, mac chip.MAC) error {
	token, err := k.DeriveOTAToken(mac)
	if err != nil {
		return err
	}
	hmac, err := k.DeriveHMACKey(mac)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(
		token.UseText(func(text []byte) error {
			raw, err := base64.RawURLEncoding.DecodeString(string(text))
			l.keys.add(fmt.Sprintf("OTA token of %s", mac), raw)
			l.keys.add(fmt.Sprintf("text of the OTA token of %s", mac), text[:40]) // whole words
			return err
		}),
		hmac.Use(func(key []byte) error { l.keys.add(fmt.Sprintf("HMAC key of %s", mac), key); return nil }),
	)
}

// child runs a process in dir, with its temporary files there too.
func (l *leaks) child(dir, program string, env []string, args ...string) (code int, stderr []byte) {
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o700); err != nil {
		l.t.Error(err)
		return -1, nil
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), hang)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errOut
	cmd.Env = append(append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp"), "GOTRACEBACK=all"), env...)
	var ee *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &ee) {
		l.t.Error(err)
	}
	name := filepath.Join(dir, strings.Join(args, " "))
	l.put(name+" std-out", out.Bytes())
	l.put(name+" std-err", errOut.Bytes())
	return cmd.ProcessState.ExitCode(), errOut.Bytes()
}

// demo runs the demo with everything that it can write.
func (l *leaks) demo() {
	dir := filepath.Join(l.root, "demo")
	for _, args := range [][]string{
		{"demo", "--units", "2", "--json", "--dir", "site", "--trace", "trace1.txt", "--log-level", "debug", "--log-file", "log1.json"},
		{"demo", "--units", "2", "--dir", "site", "--profile", "development", "--trace", "trace2.txt", "--log-level", "debug"},
	} {
		if code, stderr := l.child(dir, theBinary(l.t), nil, args...); code != 0 {
			l.t.Errorf("%v: exit code %d\n%s", args, code, last(stderr))
			return
		}
	}
	l.take(filepath.Join(dir, "site", "keystore.db"))
	l.files(dir)
	// The logs are as full as they get, or the search proves nothing.
	for file, want := range map[string]string{"trace1.txt": "WRITE_REG", "trace2.txt": "FLASH_", "log1.json": `"msg":"frame"`, "site/journal.db": "burn-key"} {
		if !bytes.Contains(l.written[filepath.Join(dir, file)], []byte(want)) {
			l.t.Errorf("%s holds no %q", file, want)
		}
	}
}

// panics runs the demo until it panics, and keeps the dump of all goroutines.
func (l *leaks) panics(name, step, in string) {
	dir := filepath.Join(l.root, name)
	self, err := os.Executable()
	if err != nil {
		l.t.Error(err)
		return
	}
	code, stderr := l.child(dir, self, []string{panicStep + "=" + step, panicIn + "=" + in},
		"demo", "--units", "2", "--json", "--dir", "site", "--trace", "trace.txt", "--log-level", "debug", "--log-file", "log.json")
	if code != 2 || !bytes.Contains(stderr, []byte("panic: forced by the test")) || !bytes.Contains(stderr, []byte("goroutine ")) {
		l.t.Errorf("%s: exit code %d\n%s", name, code, last(stderr))
		return
	}
	l.mu.Lock()
	l.inBurn = l.inBurn || bytes.Contains(stderr, []byte("provision.(*unit).burnOnce"))
	l.mu.Unlock()
	l.take(filepath.Join(dir, "site", "keystore.db"))
	l.files(dir)
}

// readable stops a unit after its key burn: the key block can still be read, and
// everything that looks at the chip reads it. Then the unit is finished.
func (l *leaks) readable(chipName string) {
	dir := filepath.Join(l.root, "readable-"+chipName)
	site := filepath.Join(dir, "site")
	if err := os.MkdirAll(site, 0o700); err != nil {
		l.t.Error(err)
		return
	}
	m, err := chip.ByName(chipName)
	if err != nil {
		l.t.Error(err)
		return
	}
	product := sample.Product{Chip: m, Profile: "development", Baud: 921600, UnitTemplate: `{"mac": {{json .MAC}}, "token": {{json .OTAToken}}}`}
	if t, err := table.For(chipName); err == nil {
		if _, has := t.Purpose("HMAC_UP"); has {
			product.More = "encimg_ecies: true\n"
		}
	}
	recipe, err := sample.Write(site, product)
	if err != nil {
		l.t.Error(err)
		return
	}
	keys, jrn := filepath.Join(site, "keystore.db"), filepath.Join(site, "journal.db")
	board := "sim://" + chipName + "?mac=02:00:00:00:00:07&state=" + filepath.Join(dir, boardState) + "&app-prints=" + strings.ReplaceAll(sample.AppText, " ", "%20")
	n := 0
	command := func(code int, observe func(context.CancelFunc, provision.Event), args ...string) string {
		l.t.Helper()
		ctx, cancel := context.WithCancel(l.t.Context())
		defer cancel()
		var out, errOut bytes.Buffer
		n++
		args = append(args, "--log-level", "debug", "--log-file", filepath.Join(dir, fmt.Sprintf("log%d.json", n)))
		got := run(ctx, args, nil, &out, &errOut, func(e provision.Event) {
			if observe != nil {
				observe(cancel, e)
			}
		})
		if got != code {
			l.t.Errorf("%v: exit code %d, want %d\n%s%s", args, got, code, &out, &errOut)
		}
		name := filepath.Join(dir, strings.Join(args, " "))
		l.put(name+" std-out", out.Bytes())
		l.put(name+" std-err", errOut.Bytes())
		return out.String()
	}
	provisionIt := []string{"provision", "--port", board, "--recipe", recipe, "--keystore", keys, "--journal", jrn}
	command(0, nil, "keystore", "init", keys, "--test", "--json")
	command(0, nil, "journal", "init", jrn)
	aborted := command(provision.ExitAborted, func(cancel context.CancelFunc, e provision.Event) {
		if e.Step == "burn-key" {
			cancel() // the burn is one-way: it ends first
		}
	}, append(provisionIt, "--trace", filepath.Join(dir, "trace1.txt"), "--json")...)
	fp := regexp.MustCompile(`"key_fingerprint":"([0-9a-f]{64})"`).FindStringSubmatch(aborted)
	if fp == nil {
		l.t.Errorf("no fingerprint in %s", aborted)
		return
	}
	seen := command(0, nil, "inspect", "--port", board, "--trace", filepath.Join(dir, "trace2.txt"))
	if !strings.Contains(seen, "readable, key "+fp[1]) {
		l.t.Errorf("inspect does not read the key block:\n%s", seen)
	}
	command(0, nil, "inspect", "--port", board, "--json")
	for _, asJSON := range [][]string{nil, {"--json"}} {
		// The key is one that no journal explains to plan: it refuses the chip.
		command(provision.ExitRefused, nil, append([]string{"plan", "--port", board, "--recipe", recipe}, asJSON...)...)
		command(0, nil, append([]string{"journal", "show", jrn}, asJSON...)...)
		command(0, nil, append([]string{"journal", "verify", jrn}, asJSON...)...)
		command(0, nil, append([]string{"keystore", "describe", keys, "--identity", keys + ".identity"}, asJSON...)...)
	}
	command(0, nil, append(provisionIt, "--trace", filepath.Join(dir, "trace3.txt"))...)
	app, unit := filepath.Join(site, "build-"+chipName+"-unit", "app.bin"), []string{"--unit", "02:00:00:00:00:07", "--keystore", keys, "--identity", keys + ".identity"}
	for i, asJSON := range [][]string{nil, {"--json"}} {
		out := filepath.Join(dir, fmt.Sprintf("ota%d", i))
		command(0, nil, slices.Concat([]string{"ota", "encrypt", "--all-slots", "--in", app, "--out", out}, unit, asJSON)...)
		command(0, nil, slices.Concat([]string{"image", "explain", filepath.Join(out, "020000000007-ota_0.bin")}, unit, asJSON)...)
	}
	l.take(keys)
	l.files(dir)
}

// last is the end of a long text.
func last(b []byte) []byte { return b[max(0, len(b)-2000):] }
