package otaclient_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"math/big"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/otaclient"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/ota"
)

// parser is the client's parsers in a process under the sanitizers: a read beyond
// an input ends it.
type parser struct {
	mu  sync.Mutex
	in  io.Writer
	out io.Reader
	err *bytes.Buffer
}

func newParser(t testing.TB) *parser {
	t.Helper()
	cmd := exec.Command(otaclient.Program(t, "parse"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &parser{in: in, out: out, err: new(bytes.Buffer)}
	cmd.Stderr = p.err
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the parser ended with %v\n%s", err, p.err)
		}
	})
	return p
}

// parse gives what the client makes of an input.
func (p *parser) parse(t testing.TB, kind byte, input []byte) (string, bool) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	head := binary.LittleEndian.AppendUint32([]byte{kind}, uint32(len(input)))
	if _, err := p.in.Write(append(head, input...)); err != nil {
		t.Fatalf("%v\ninput %q\n%s", err, input, p.err)
	}
	if _, err := io.ReadFull(p.out, head); err != nil {
		t.Fatalf("%v\ninput %q\n%s", err, input, p.err)
	}
	answer := make([]byte, binary.LittleEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(p.out, answer); err != nil {
		t.Fatalf("%v\ninput %q\n%s", err, input, p.err)
	}
	return string(answer), head[0] == 1
}

// rawSignature is a DER signature as r then s, if it is one in its only form.
func rawSignature(der []byte) (string, bool) {
	var sig struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(der, &sig)
	if err != nil || len(rest) != 0 || sig.R.Sign() <= 0 || sig.S.Sign() <= 0 || sig.R.BitLen() > 256 || sig.S.BitLen() > 256 {
		return "", false
	}
	if again, err := asn1.Marshal(sig); err != nil || !bytes.Equal(again, der) {
		return "", false
	}
	raw := make([]byte, 64)
	sig.R.FillBytes(raw[:32])
	sig.S.FillBytes(raw[32:])
	return hex.EncodeToString(raw), true
}

// wantManifest is what the client must make of a manifest's text, by what the
// library makes of it.
func wantManifest(text []byte) (string, bool) {
	m, err := ota.ParseManifest(text)
	if err != nil {
		return "", false
	}
	raw, ok := rawSignature(m.Signature)
	if !ok {
		return "", false
	}
	signed, err := m.Signed()
	if err != nil {
		return "", false
	}
	return fmt.Sprintf("unit %s\nchip %s\nrelease %s\nproject %s\nversion %s\nslot %s\naddress 0x%08x\nlength %d\nplain-length %d\n"+
		"sha256-plain %x\nsha256-cipher %x\nsecure-version %d\nkey %s\nnonce %x\nsigner %x\nsignature %s\nsigned %d\n",
		m.Unit, m.Chip, m.Release, m.Project, m.Version, m.Slot, m.Address, m.Length, m.PlainLength,
		m.PlainSHA256, m.CipherSHA256, m.SecureVersion, m.Key, m.Nonce, m.Signer, raw, len(signed)), true
}

// newSigner makes a signing key of its own.
func newSigner(t testing.TB) ota.Signer {
	t.Helper()
	private, _, err := ota.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	s, err := ota.ParseSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// manifests are texts that are in order.
func manifests(t testing.TB) [][]byte {
	t.Helper()
	signer := newSigner(t)
	var texts [][]byte
	for i := range 12 {
		m := &ota.Manifest{
			Unit: chip.MAC{0x24, 0x0A, 0xC4, 0, 0, byte(i)}, Chip: []string{"esp32", "esp32c3", "esp32s3"}[i%3],
			Release: []string{"1.4.2", "", strings.Repeat("x", 64), `q"\%&+`}[i%4], Project: "thermostat", Version: []string{"1.4.2", ""}[i%2],
			Slot: fmt.Sprintf("ota_%d", i+4), Address: 0x110000, Length: 913408, PlainLength: 913400 - uint32(i%4),
			PlainSHA256: sha256.Sum256([]byte{byte(i)}), CipherSHA256: sha256.Sum256([]byte{1, byte(i)}),
			SecureVersion: uint32(i), Key: keystore.Fingerprint(sha256.Sum256([]byte{2})),
		}
		if i%2 == 0 {
			m.Nonce = bytes.Repeat([]byte{byte(i)}, ota.NonceSize)
		}
		if err := m.Sign(t.Context(), signer); err != nil {
			t.Fatal(err)
		}
		text, err := m.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	return texts
}

// mutate changes an input in one to four places.
func mutate(r *rand.Rand, in []byte, other []byte) []byte {
	b := bytes.Clone(in)
	for range 1 + r.IntN(4) {
		if len(b) == 0 {
			return b
		}
		at := r.IntN(len(b))
		switch r.IntN(8) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = byte(r.Uint32())
		case 2:
			b = append(b[:at], b[at+1:]...)
		case 3:
			b = append(b[:at], append([]byte{" \n\r:-0=A\xff\x00"[r.IntN(10)]}, b[at:]...)...)
		case 4:
			b = b[:at]
		case 5:
			n := min(r.IntN(80), len(b)-at)
			b = append(b[:at+n], b[at:]...)
		case 6: // a stretch of another one, cut anywhere
			from := r.IntN(len(other))
			b = append(b[:at], other[from:]...)
		case 7: // two lines change places
			lines := bytes.SplitAfter(b, []byte("\n"))
			i, j := r.IntN(len(lines)), r.IntN(len(lines))
			lines[i], lines[j] = lines[j], lines[i]
			b = bytes.Join(lines, nil)
		}
		b = b[:min(len(b), 8000)]
	}
	return b
}

func checkManifest(t *testing.T, p *parser, text []byte) bool {
	t.Helper()
	want, ok := wantManifest(text)
	got, took := p.parse(t, 'm', text)
	if took != ok || took && got != want {
		t.Fatalf("the client takes it: %v, it is one: %v\n%q\nclient reads\n%s\nwant\n%s", took, ok, text, got, want)
	}
	return took
}

// TestManifestParser holds the client's parser against the library's: both take and
// refuse the same texts, and read the same in them.
func TestManifestParser(t *testing.T) {
	p := newParser(t)
	texts := manifests(t)
	for _, text := range texts {
		if !checkManifest(t, p, text) {
			t.Errorf("refused: %s", text)
		}
	}
	// Values that the dice would hardly find.
	base := string(texts[0]) // of an ESP32
	for _, c := range []struct{ old, new string }{
		{"manifest 1", "manifest 2"},
		{"unit 24", "unit 25"},
		{"unit 24", "unit 2A"},
		{"chip esp32", "chip esp33"},
		{"chip esp32", "chip esp32-"},
		{"chip esp32", "chip esp32aaaaaaaaaaa"},
		{"chip esp32", "chip esp32aaaaaaaaaaaa"},
		{"slot ota_4", "slot ota_04"},
		{"slot ota_4", "slot ota_16"},
		{"slot ota_4", "slot ota_15"},
		{"slot ota_4", "slot factory"},
		{"address 0x00110000", "address 0x110000"},
		{"address 0x00110000", "address 0x00110010"},
		{"address 0x00110000", "address 0X00110000"},
		{"address 0x00110000", "address 0xfff21000"},
		{"address 0x00110000", "address 0xfff20000"},
		{"address 0x00110000", "address 0xffffffe0"},
		{"length 913408", "length 0913408"},
		{"length 913408", "length 913440"},
		{"length 913408", "length 4294967295"},
		{"length 913408", "length 4294967296"},
		{"plain-length 913400", "plain-length 913376"},
		{"plain-length 913400", "plain-length 913377"},
		{"plain-length 913400", "plain-length 913409"},
		{"plain-length 913400", "plain-length 0"},
		{"secure-version 0", "secure-version 4294967295"},
		{"secure-version 0", "secure-version 4294967296"},
		{"secure-version 0", "secure-version -1"},
		{"secure-version 0", "secure-version "},
		{"release 1.4.2", "release -"},
		{"release 1.4.2", "release --"},
		{"release 1.4.2", "release "},
		{"release 1.4.2", "release a b"},
		{"release 1.4.2", "release \x7f"},
		{"release 1.4.2", "release " + strings.Repeat("x", 64)},
		{"release 1.4.2", "release " + strings.Repeat("x", 65)},
		{"\n", "\r\n"},
		{"signature ", "signature  "},
		{"project thermostat", "project thermostat\nproject thermostat"},
		{"project thermostat\n", ""},
	} {
		if !strings.Contains(base, c.old) {
			t.Fatalf("no %q in the manifest", c.old)
		}
		checkManifest(t, p, []byte(strings.Replace(base, c.old, c.new, 1)))
	}
	for n := range len(base) {
		checkManifest(t, p, []byte(base[:n]))
	}
	checkManifest(t, p, []byte(base+"\n"))
	checkManifest(t, p, nil)

	r := rand.New(rand.NewPCG(6, 1))
	taken := 0
	for range 20000 {
		a, b := texts[r.IntN(len(texts))], texts[r.IntN(len(texts))]
		if checkManifest(t, p, mutate(r, a, b)) {
			taken++
		}
	}
	if taken == 0 || taken == 20000 {
		t.Errorf("%d of 20000 were taken: the dice are no good", taken)
	}
}

// TestSignatureForms: DER has one form, and the client takes only that.
func TestSignatureForms(t *testing.T) {
	p := newParser(t)
	text := string(manifests(t)[0])
	head, _, _ := strings.Cut(text, "\nsignature ")
	der := func(r, s []byte) []byte {
		b := append([]byte{2, byte(len(r))}, r...)
		b = append(append(b, 2, byte(len(s))), s...)
		return append([]byte{0x30, byte(len(b))}, b...)
	}
	full := bytes.Repeat([]byte{0x7F}, 32)
	high := append([]byte{0}, bytes.Repeat([]byte{0xFF}, 32)...)
	// Base64 has one form too: the bits that nobody needs are zeros.
	for _, sig := range [][]byte{der(full, full), der(high, full)} {
		b64 := base64.StdEncoding.EncodeToString(sig)
		at := strings.IndexByte(b64, '=') - 1
		for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=" {
			text := b64[:at] + string(c) + b64[at+1:]
			checkManifest(t, p, []byte(head+"\nsignature "+text+"\n"))
		}
		checkManifest(t, p, []byte(head+"\nsignature "+strings.TrimRight(b64, "=")+"\n"))
	}
	for name, sig := range map[string][]byte{
		"plain": der(full, full), "high": der(high, high), "short": der([]byte{1}, []byte{2}),
		"zero": der([]byte{0}, full), "negative": der([]byte{0x80}, full), "padded": der([]byte{0, 1}, full), "empty": der(nil, full),
		"33 bytes": der(append([]byte{1}, full...), full), "trailing": append(der(full, full), 0), "cut": der(full, full)[:60],
		"inner cut": {0x30, 6, 2, 1, 1, 2, 33, 1}, "long length": append([]byte{0x30, 0x81, 68}, der(full, full)[2:]...), "nothing": {},
		"wrong tag": {0x31, 6, 2, 1, 1, 2, 1, 1}, "inner tag": {0x30, 6, 3, 1, 1, 2, 1, 1}, "one": {0x30, 3, 2, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := []byte(head + "\nsignature " + base64.StdEncoding.EncodeToString(sig) + "\n")
			if checkManifest(t, p, m) != (name == "plain" || name == "high" || name == "short") {
				t.Error("taken or refused wrongly")
			}
		})
	}
}

// TestResponseHead: heads that are good, and thousands that are not.
func TestResponseHead(t *testing.T) {
	p := newParser(t)
	good := "HTTP/1.1 206 Partial Content\r\nContent-Length: 4096\r\ncontent-range: bytes 0-4095/913408\r\nETag: \"abc\"\r\nRetry-After: 7\r\nX-Other: a:b \r\n\r\nbody"
	for in, want := range map[string]string{
		good:                              "206 bad=0 keep=1 length=4096 range=0-4095/913408 etag=\"abc\" retry=7",
		"HTTP/1.1 204 No Content\r\n\r\n": "204 bad=0 keep=1",
		"HTTP/1.0 200 OK\r\n\r\n":         "200 bad=0 keep=0",
		"HTTP/1.1 200\r\nConnection: close\r\n\r\n":                             "200 bad=0 keep=0",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n":                 "200 bad=1 keep=1",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n":     "200 bad=1 keep=1",
		"HTTP/1.1 200 OK\r\nContent-Length: 4294967296\r\n\r\n":                 "200 bad=1 keep=1",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n":                         "200 bad=1 keep=1",
		"HTTP/1.1 200 OK\r\nETag: W/\"a\"\r\n\r\n":                              "200 bad=1 keep=1",
		"HTTP/1.1 200 OK\r\nETag: \"" + strings.Repeat("e", 98) + "\"\r\n\r\n":  "200 bad=1 keep=1",
		"HTTP/1.1 206 OK\r\nContent-Range: bytes 5-4/9\r\n\r\n":                 "206 bad=1 keep=1",
		"HTTP/1.1 206 OK\r\nContent-Range: bytes 5-9/9\r\n\r\n":                 "206 bad=1 keep=1",
		"HTTP/1.1 206 OK\r\nContent-Range: bytes */9\r\n\r\n":                   "206 bad=1 keep=1",
		"HTTP/1.1 416 No\r\nContent-Range: bytes */9\r\n\r\n":                   "416 bad=0 keep=1",
		"HTTP/1.1 503 No\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\n": "503 bad=0 keep=1",
	} {
		if got, ok := p.parse(t, 'h', []byte(in)); !ok || got != fmt.Sprintf("%d %s", strings.Index(in, "\r\n\r\n")+4, want) {
			t.Errorf("%q\ngives %q\nwant  %q", in, got, want)
		}
	}
	for _, in := range []string{
		"HTTP/1.1 99 x\r\n\r\n", "HTTP/2 200 OK\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n", "HTTP/1.1  200\r\n\r\n", "\r\n\r\n", "HTTP/1.1 200 OK\r\n folded: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "HTTP/1.1 200 OK\r\n: v\r\n\r\n", "HTTP/1.1 200 OK\r\na b: v\r\n\r\n", "HTTP/1.1 200 OK\r\na: \x00\r\n\r\n",
		"HTTP/1.1 200 OK\r\na: x\ry\r\n\r\n", "HTTP/1.1 200 OK\r\na: x\ny\r\n\r\n", strings.Repeat("x", 5000),
	} {
		if got, ok := p.parse(t, 'h', []byte(in)); ok || got != "-1" {
			t.Errorf("%q gives %q", in, got)
		}
	}
	for n := range strings.Index(good, "body") {
		if got, ok := p.parse(t, 'h', []byte(good[:n])); ok || got != "0" {
			t.Fatalf("a head cut at %d gives %q", n, got)
		}
	}
	r := rand.New(rand.NewPCG(6, 2))
	for range 20000 {
		checkHead(t, p, mutate(r, []byte(good), []byte(good)))
	}
}

// checkHead: whatever comes, what is read of it makes sense.
func checkHead(t *testing.T, p *parser, in []byte) {
	t.Helper()
	got, ok := p.parse(t, 'h', in)
	var n, code, bad int
	if _, err := fmt.Sscanf(got, "%d %d bad=%d", &n, &code, &bad); ok && (err != nil || n > len(in) || code < 100 || code > 599) {
		t.Fatalf("%q gives %q", in, got)
	}
}

// TestRecord: a stored record is what was stored, or none.
func TestRecord(t *testing.T) {
	p := newParser(t)
	const size = recordSize
	seal, good := sealRecord, goodRecord()
	if got, ok := p.parse(t, 'r', good); !ok || got != string(good) {
		t.Fatalf("a good record is refused, or comes back as another: %q", got)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"phase":        func(b []byte) []byte { b[4] = 6; return seal(b) },
		"told":         func(b []byte) []byte { b[5] = 2; return seal(b) },
		"why":          func(b []byte) []byte { b[6] = 200; return seal(b) },
		"rejected":     func(b []byte) []byte { b[7] = 2; return seal(b) },
		"beyond":       func(b []byte) []byte { b[17] = 0x80; return seal(b) },
		"odd":          func(b []byte) []byte { b[16] = 1; return seal(b) },
		"slot full":    func(b []byte) []byte { copy(b[88:], "ota_1234"); return seal(b) },
		"release full": func(b []byte) []byte { copy(b[96:], strings.Repeat("r", 65)); return seal(b) },
		"after a zero": func(b []byte) []byte { b[110] = 'x'; return seal(b) },
		"control":      func(b []byte) []byte { b[97] = 7; return seal(b) },
		"magic":        func(b []byte) []byte { b[3] = '2'; return seal(b) },
		"crc":          func(b []byte) []byte { b[size-1] ^= 1; return b },
		"short":        func(b []byte) []byte { return b[:size-1] },
		"long":         func(b []byte) []byte { return append(b, 0) },
		"none":         func([]byte) []byte { return nil },
	} {
		if _, ok := p.parse(t, 'r', change(bytes.Clone(good))); ok {
			t.Errorf("%s: taken", name)
		}
	}
	r := rand.New(rand.NewPCG(6, 3))
	for range 20000 {
		in := mutate(r, good, good)
		if len(in) == size && r.IntN(2) == 0 {
			seal(in)
		}
		if got, ok := p.parse(t, 'r', in); ok && got != string(in) {
			t.Fatalf("%q comes back as %q", in, got)
		}
	}
}

const recordSize = 348

// sealRecord sets the CRC of a record.
func sealRecord(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[recordSize-4:], crc32.ChecksumIEEE(b[:recordSize-4]))
	return b
}

func goodRecord() []byte {
	b := make([]byte, recordSize)
	copy(b, "pvO1\x01\x01")
	binary.LittleEndian.PutUint32(b[12:], 10000)
	binary.LittleEndian.PutUint32(b[16:], 8192)
	copy(b[88:], "ota_1")
	copy(b[96:], "1.4.2")
	copy(b[164:], strings.Repeat("v", 64))
	copy(b[232:], "\"etag\"")
	return sealRecord(b)
}

// FuzzHead looks for heads that the client reads wrongly.
func FuzzHead(f *testing.F) {
	f.Add([]byte("HTTP/1.1 206 Partial Content\r\nContent-Length: 4096\r\ncontent-range: bytes 0-4095/913408\r\nETag: \"abc\"\r\n\r\nbody"))
	f.Add([]byte("HTTP/1.0 503 Busy\r\nRetry-After: 7\r\nConnection: close\r\n\r\n"))
	p := newParser(f)
	f.Fuzz(func(t *testing.T, in []byte) { checkHead(t, p, in[:min(len(in), 8000)]) })
}

// FuzzRecord looks for records that come back as others.
func FuzzRecord(f *testing.F) {
	f.Add(goodRecord())
	p := newParser(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == recordSize {
			in = sealRecord(bytes.Clone(in))
		}
		if got, ok := p.parse(t, 'r', in[:min(len(in), 8000)]); ok && got != string(in) {
			t.Fatalf("%q comes back as %q", in, got)
		}
	})
}

// FuzzManifest compares the two parsers further.
func FuzzManifest(f *testing.F) {
	for _, text := range manifests(f) {
		f.Add(text)
	}
	p := newParser(f)
	f.Fuzz(func(t *testing.T, text []byte) { checkManifest(t, p, text[:min(len(text), 8000)]) })
}
