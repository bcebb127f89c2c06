package secret_test

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.yaml.in/yaml/v3"

	"github.com/provisiond/provisiond/internal/secret"
)

// plain is a key whose forms are easy to find: no byte repeats.
func plain() []byte {
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(0x41 + 3*i)
	}
	return b
}

// forms gives what a leak of b could look like, from eight bytes on.
func forms(b []byte) map[string]string {
	back := slices.Clone(b)
	slices.Reverse(back)
	out := map[string]string{}
	for name, v := range map[string][]byte{"": b[:9], "reversed ": back[:9], "middle ": b[9:18]} {
		decimal := strings.Trim(fmt.Sprint(v), "[]")
		out[name+"raw"] = string(v)
		out[name+"hex"] = fmt.Sprintf("%x", v)
		out[name+"HEX"] = fmt.Sprintf("%X", v)
		out[name+"spaced hex"] = fmt.Sprintf("% x", v)
		out[name+"Go syntax"] = strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", v), "[]byte{"), "}")
		out[name+"decimal"] = decimal
		out[name+"decimal list"] = strings.ReplaceAll(decimal, " ", ",")
		out[name+"decimal list, spaced"] = strings.ReplaceAll(decimal, " ", ", ")
		out[name+"quoted"] = strings.Trim(fmt.Sprintf("%q", v), `"`)
		out[name+"base64"] = base64.StdEncoding.EncodeToString(v)
	}
	return out
}

func noLeak(t *testing.T, how, out string) {
	t.Helper()
	for form, text := range forms(plain()) {
		if strings.Contains(out, text) {
			t.Errorf("%s shows the key (%s): %.300q", how, form, out)
		}
	}
}

// TestFormsAreFound shows that noLeak's search finds a leak.
func TestFormsAreFound(t *testing.T) {
	type naked struct{ b []byte }
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%X", "% x", "%s", "%q", "%d"} {
		out, found := fmt.Sprintf(verb, naked{plain()}), false
		for _, text := range forms(plain()) {
			found = found || strings.Contains(out, text)
		}
		if !found {
			t.Errorf("%s: a naked key is not found in %q", verb, out)
		}
	}
}

type inner struct{ s *secret.Bytes }

type outer struct {
	name   string
	value  secret.Bytes
	ptr    *secret.Bytes
	in     inner
	list   []secret.Bytes
	ptrs   []*secret.Bytes
	byName map[string]*secret.Bytes
	any    any
	anyPtr any
	Public *secret.Bytes
	Value  secret.Bytes
}

func holders() map[string]any {
	s := secret.New(plain())
	o := outer{"n", *s, s, inner{s}, []secret.Bytes{*s}, []*secret.Bytes{s}, map[string]*secret.Bytes{"k": s}, *s, s, s, *s}
	return map[string]any{
		"pointer": s, "value": *s, "struct": o, "pointer to struct": &o, "slice": []any{s, *s, o},
		"map": map[string]any{"k": s, "v": *s, "o": o}, "array": [2]secret.Bytes{*s, *s}, "error": fmt.Errorf("wrap: %v", o),
	}
}

func TestNoVerbPrints(t *testing.T) {
	for name, v := range holders() {
		for _, verb := range []string{
			"%v", "%+v", "%#v", "%s", "%+s", "%q", "%#q", "%x", "%X", "%#x", "% x", "% #X", "%d", "%+d", "%o", "%b",
			"%c", "%U", "%#U", "%e", "%g", "%t", "%p", "%T", "%08d", "%20.40s", "%z",
		} {
			noLeak(t, verb+" of "+name, fmt.Sprintf(verb, v))
		}
		noLeak(t, "Print of "+name, fmt.Sprint(v)+fmt.Sprintln(v))
	}
	s := secret.New(plain())
	if got := fmt.Sprintf("%v %s %x %#v %d", s, s, s, *s, *s); got != strings.TrimSpace(strings.Repeat(secret.Redacted+" ", 5)) {
		t.Errorf("placeholder: %q", got)
	}
	var none *secret.Bytes
	_ = fmt.Sprintf("%v %+v %#v %x", none, none, none, none)
}

func TestNoMarshallerPrints(t *testing.T) {
	for name, v := range holders() {
		if b, err := json.Marshal(v); err == nil {
			noLeak(t, "JSON of "+name, string(b))
		}
		if b, err := yaml.Marshal(v); err == nil {
			noLeak(t, "YAML of "+name, string(b))
		}
		if b, err := xml.Marshal(v); err == nil {
			noLeak(t, "XML of "+name, string(b))
		}
		var buf bytes.Buffer
		_ = gob.NewEncoder(&buf).Encode(v)
		noLeak(t, "gob of "+name, buf.String())
	}
}

func TestNoLoggerPrints(t *testing.T) {
	for name, v := range holders() {
		for kind, enc := range map[string]zapcore.Encoder{
			"json":    zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()),
			"console": zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()),
		} {
			var buf bytes.Buffer
			log := zap.New(zapcore.NewCore(enc, zapcore.AddSync(&buf), zap.DebugLevel))
			log.Debug("m", zap.Any("any", v), zap.Reflect("reflect", v), zap.String("fmt", fmt.Sprintf("%+v", v)))
			log.Sugar().Debugw("m", "v", v)
			log.Sugar().Debugf("%#v", v)
			if buf.Len() == 0 {
				t.Fatal("zap wrote nothing")
			}
			noLeak(t, "zap "+kind+" of "+name, buf.String())
		}
		var buf bytes.Buffer
		slog.New(slog.NewJSONHandler(&buf, nil)).Info("m", "v", v)
		slog.New(slog.NewTextHandler(&buf, nil)).Info("m", "v", v)
		noLeak(t, "slog of "+name, buf.String())
	}
}

const envPanic = "PROVISIOND_TEST_SECRET_PANIC"

// TestMain lets the test binary panic as its own child.
func TestMain(m *testing.M) {
	if name := os.Getenv(envPanic); name != "" {
		die(name, holders()[name])
	}
	os.Exit(m.Run())
}

//go:noinline
func die(name string, v any) {
	s := v
	switch o := v.(type) {
	case *secret.Bytes:
		_ = o.Use(func([]byte) error { panic(s) }) // with the bytes lent on the stack
	case secret.Bytes:
		panic(o)
	case outer:
		panic(o)
	case *outer:
		panic(fmt.Sprintf("%s %#v", name, o))
	case error:
		panic(o)
	}
	panic(v)
}

func TestNoPanicPrints(t *testing.T) {
	for name := range holders() {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envPanic+"="+name, "GOTRACEBACK=system")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !bytes.Contains(out, []byte("goroutine ")) {
			t.Fatalf("%s: the child did not panic: %v: %s", name, err, out)
		}
		noLeak(t, "panic with "+name, string(out))
	}
}

func TestTakesOver(t *testing.T) {
	b := plain()
	s := secret.New(b)
	if !bytes.Equal(b, make([]byte, 32)) {
		t.Error("New did not wipe its input")
	}
	err := s.Use(func(got []byte) error {
		if !bytes.Equal(got, plain()) || cap(got) != len(got) {
			t.Errorf("lent %d bytes, capacity %d", len(got), cap(got))
		}
		return os.ErrClosed
	})
	if !errors.Is(err, os.ErrClosed) || s.Len() != 32 {
		t.Errorf("Use: %v; Len %d", err, s.Len())
	}
}

func TestWipe(t *testing.T) {
	s := secret.New(plain())
	shared := *s
	var kept []byte
	err := s.Use(func(b []byte) error {
		kept = b
		s.Wipe() // takes effect when Use ends
		if !bytes.Equal(b, plain()) {
			t.Error("wiped under the user's hands")
		}
		return s.Use(func([]byte) error { t.Error("lent after a wipe"); return nil })
	})
	if !errors.Is(err, secret.ErrEmpty) || s.Len() != 0 || shared.Len() != 0 {
		t.Errorf("after a wipe: %v, %d, %d", err, s.Len(), shared.Len())
	}
	if !bytes.Equal(kept, make([]byte, 32)) {
		t.Error("the bytes are still there")
	}
	for name, empty := range map[string]*secret.Bytes{"nil": nil, "zero": {}, "no bytes": secret.New(nil), "wiped": s} {
		if err := empty.Use(func([]byte) error { t.Errorf("%s: lent", name); return nil }); !errors.Is(err, secret.ErrEmpty) || empty.Len() != 0 {
			t.Errorf("%s: %v", name, err)
		}
		if empty.Equal(empty) || empty.Equal(secret.New(plain())) {
			t.Errorf("%s equals something", name)
		}
		empty.Wipe()
	}
}

func TestEqual(t *testing.T) {
	a, b := secret.New(plain()), secret.New(plain())
	other := plain()
	other[31] ^= 1
	if !a.Equal(b) || !a.Equal(a) || a.Equal(secret.New(other)) || a.Equal(secret.New(plain()[:31])) {
		t.Error("Equal is wrong")
	}
}

func TestConcurrent(t *testing.T) {
	s := secret.New(plain())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				err := s.Use(func(b []byte) error {
					if !bytes.Equal(b, plain()) {
						t.Error("half-wiped bytes were lent")
					}
					return nil
				})
				if err != nil && !errors.Is(err, secret.ErrEmpty) {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(s.Wipe)
	wg.Wait()
}

// TestFingerprint has a value computed with Python's hashlib.
func TestFingerprint(t *testing.T) {
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(i)
	}
	if got := fmt.Sprintf("%x", secret.Fingerprint(b)); got != "2ca57b11a65f5c5c656f6efb49f60680eafb4c7fdd20fc3377d8548c1548602d" {
		t.Errorf("fingerprint %s", got)
	}
}
