package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFilesAreCurrent(t *testing.T) {
	for _, a := range arches {
		want, err := generate("..", a)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("..", a.file))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the generator writes: run go generate ./esp/flashcrypt", a.file)
		}
	}
}

// The declarations and the algorithms must be the same functions.
func TestDeclarationsAreHeld(t *testing.T) {
	source, err := os.ReadFile("../aes_asm.go")
	if err != nil {
		t.Fatal(err)
	}
	const last = "func esp32Decrypt(keys"
	for name, c := range map[string]struct{ old, with, want string }{
		"one more":  {last, "func more(n int)\n\n" + last, "more has no algorithm"},
		"renamed":   {last, "func other(keys", "other has no algorithm"},
		"one less":  {last + " *keyWords, schedules *esp32Schedules, dst, src *byte, groups int)", "", "6 functions, there are algorithms for 7"},
		"no Go":     {"package flashcrypt", "package", "expected"},
		"arguments": {"func expand128(key *byte, enc *roundKeys)", "func expand128()", "without parameters"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(string(source), c.old, c.with, 1)
			if text == string(source) {
				t.Fatal("nothing was changed")
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "aes_asm.go"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := generate(dir, arches[0]); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// A pointer must be at the end of a loop where it was at the head: what the body
// goes ahead by is what the loop moves it by.
func TestLoopHoldsItsStreams(t *testing.T) {
	for blocks, ok := range map[int]bool{1: true, 2: false} {
		func() {
			defer func() {
				if p := recover(); (p == nil) != ok {
					t.Errorf("%d blocks per turn after one before: %v", blocks, p)
				}
			}()
			e := &emitter{}
			c := &code{emitter: e, machine: amd64{e}}
			s := &stream{reg: "BX", off: 16}
			c.loop("next", "CX", "$8", []*stream{s}, func() { s.advance(blocks) })
		}()
	}
}

func TestComments(t *testing.T) {
	for regs, want := range map[string]string{
		"X3":                            "X3",
		"X0 X1":                         "X0 X1",
		"X0 X1 X2 X3":                   "X0-X3",
		"V8 V9 V10 V11 V12 V24 V25 V27": "V8-V12 V24 V25 V27",
		"AX":                            "AX",
	} {
		if got := brief(strings.Fields(regs)); got != want {
			t.Errorf("%s: %s, want %s", regs, got, want)
		}
	}
}
