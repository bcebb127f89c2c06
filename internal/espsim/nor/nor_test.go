package nor_test

import (
	"bytes"
	"crypto/md5"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/provisiond/provisiond/internal/espsim/nor"
)

func content(t testing.TB, f *nor.Flash) []byte {
	t.Helper()
	p := make([]byte, f.Size())
	if _, err := f.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestProgramOnlyClearsBits(t *testing.T) {
	f := nor.New(0x2000)
	must(t, f.Program(0xFFE, []byte{0xF0, 0x0F, 0xAA, 0xFF})) // over a sector border
	must(t, f.Program(0xFFE, []byte{0x3C, 0xFF, 0x0F, 0xFF}))
	got := make([]byte, 6)
	if _, err := f.ReadAt(got, 0xFFD); err != nil {
		t.Fatal(err)
	}
	if want := []byte{0xFF, 0x30, 0x0F, 0x0A, 0xFF, 0xFF}; !bytes.Equal(got, want) {
		t.Errorf("content %x, want %x", got, want)
	}
}

func TestMemoryOnlyForWhatIsNotErased(t *testing.T) {
	f := nor.New(16 << 20)
	must(t, f.Program(0, bytes.Repeat([]byte{0xFF}, 1<<20)))
	if f.Used() != 0 {
		t.Errorf("programming 0xFF took %d sectors", f.Used())
	}
	must(t, f.Program(0x5000, []byte{0xFF, 0xFE}))
	must(t, f.Program(0x6FFF, []byte{0, 0}))
	if f.Used() != 3 {
		t.Errorf("%d sectors in use, want 3", f.Used())
	}
	must(t, f.EraseSector(0x6000))
	must(t, f.Erase(0x5000, 0x1000))
	must(t, f.Erase(0, 0x5000))
	if f.Used() != 1 {
		t.Errorf("%d sectors in use after the erase, want 1", f.Used())
	}
	if p := content(t, f); p[0x5001] != 0xFF || p[0x6FFF] != 0xFF || p[0x7000] != 0 {
		t.Error("the erase hit the wrong sectors")
	}
}

func TestRange(t *testing.T) {
	f := nor.New(0x3000)
	must(t, f.Program(0x2FFF, []byte{0}))
	must(t, f.Program(0x3000, nil))
	before := content(t, f)
	for name, err := range map[string]error{
		"program over the end":  f.Program(0x2FFF, []byte{0, 0}),
		"program far out":       f.Program(0xFFFFFFFF, []byte{0, 0}),
		"erase behind the end":  f.EraseSector(0x3000),
		"erase over the end":    f.Erase(0x2000, 0x2000),
		"erase that wraps":      f.Erase(0x1000, 0xFFFFF000),
		"MD5 over the end":      second(f.MD5(0x2000, 0x1001)),
		"MD5 that wraps":        second(f.MD5(0x2000, 0xFFFFFFFF)),
		"read before the start": second(f.ReadAt(make([]byte, 1), -1)),
	} {
		if !errors.Is(err, nor.ErrRange) {
			t.Errorf("%s: %v, want ErrRange", name, err)
		}
	}
	for name, err := range map[string]error{
		"erase inside a sector":  f.EraseSector(0x10),
		"erase of half a sector": f.Erase(0, 0x800),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if !bytes.Equal(before, content(t, f)) {
		t.Error("a refused access changed the content")
	}
	p := make([]byte, 4)
	if n, err := f.ReadAt(p, 0x2FFE); n != 2 || !errors.Is(err, io.EOF) || p[1] != 0 {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := f.ReadAt(p, 0x3000); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %d, %v", n, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestNewRefusesWhatIsNoFlash(t *testing.T) {
	for _, size := range []uint32{0, 1, 0x1800} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("New(%d) did not panic", size)
				}
			}()
			nor.New(size)
		}()
	}
}

func TestReaderAtContract(t *testing.T) {
	f := nor.New(0x4000)
	must(t, f.Program(0x1234, []byte("some content")))
	if err := iotest.TestReader(io.NewSectionReader(f, 0, 0x4000), content(t, f)); err != nil {
		t.Error(err)
	}
}

// TestAgainstArray compares every operation with a plain byte array.
func TestAgainstArray(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 8 * nor.SectorSize
		f, model := nor.New(size), bytes.Repeat([]byte{0xFF}, size)
		addr := rapid.Uint32Range(0, size-1)
		t.Repeat(map[string]func(*rapid.T){
			"program": func(t *rapid.T) {
				a := addr.Draw(t, "addr")
				data := bytes.Repeat([]byte{rapid.Byte().Draw(t, "fill")}, rapid.IntRange(0, 9000).Draw(t, "n"))
				err := f.Program(a, data)
				if int(a)+len(data) > size {
					if !errors.Is(err, nor.ErrRange) {
						t.Fatalf("program out of range: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				for i, b := range data {
					model[int(a)+i] &= b
				}
			},
			"erase": func(t *rapid.T) {
				a := addr.Draw(t, "addr") / nor.SectorSize * nor.SectorSize
				if err := f.EraseSector(a); err != nil {
					t.Fatal(err)
				}
				for i := range nor.SectorSize {
					model[int(a)+i] = 0xFF
				}
			},
			"": func(t *rapid.T) {
				a := addr.Draw(t, "from")
				n := rapid.Uint32Range(0, size-a).Draw(t, "n")
				got := make([]byte, n)
				if _, err := f.ReadAt(got, int64(a)); err != nil || !bytes.Equal(got, model[a:a+n]) {
					t.Fatalf("read 0x%x+0x%x differs (%v)", a, n, err)
				}
				sum, err := f.MD5(a, n)
				if err != nil || sum != md5.Sum(model[a:a+n]) {
					t.Fatalf("MD5 0x%x+0x%x differs (%v)", a, n, err)
				}
				var form bytes.Buffer
				if _, err := f.WriteTo(&form); err != nil {
					t.Fatal(err)
				}
				var again nor.Flash
				if _, err := again.ReadFrom(&form); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(content2(t, &again), model) {
					t.Fatal("the stored form lost content")
				}
			},
		})
	})
}

func content2(t *rapid.T, f *nor.Flash) []byte {
	p := make([]byte, f.Size())
	if _, err := f.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func stored(t testing.TB, f *nor.Flash) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := f.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("WriteTo: %d of %d bytes, %v", n, b.Len(), err)
	}
	return b.Bytes()
}

func sample(t testing.TB) *nor.Flash {
	f := nor.New(0x10000)
	must(t, f.Program(0x1FF0, bytes.Repeat([]byte("flash"), 20)))
	must(t, f.Program(0xFFFF, []byte{0x7F}))
	return f
}

func TestReadFromRefusesDamage(t *testing.T) {
	form := stored(t, sample(t))
	for i := range form {
		if i > 64 && i < len(form)-64 && i%97 != 0 {
			continue
		}
		bad := bytes.Clone(form)
		bad[i] ^= 0x10
		f := sample(t)
		before := content(t, f)
		if _, err := f.ReadFrom(bytes.NewReader(bad)); err == nil {
			t.Fatalf("byte %d damaged: no error", i)
		}
		if _, err := f.ReadFrom(bytes.NewReader(form[:i])); !errors.Is(err, nor.ErrFormat) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
		if !bytes.Equal(before, content(t, f)) {
			t.Fatal("a refused form changed the flash")
		}
	}
	if _, err := nor.New(0x10000).ReadFrom(bytes.NewReader(append(bytes.Clone(form), 0))); !errors.Is(err, nor.ErrFormat) {
		t.Errorf("trailing byte: %v", err)
	}
	if _, err := nor.New(0x20000).ReadFrom(bytes.NewReader(form)); err == nil {
		t.Error("a flash of another size took the form")
	}
	broken := errors.New("cable")
	if _, err := nor.New(0x10000).ReadFrom(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("reader's error lost: %v", err)
	}
	if _, err := new(nor.Flash).WriteTo(io.Discard); err == nil {
		t.Error("a flash of size 0 was stored")
	}
}

func FuzzReadFrom(f *testing.F) {
	f.Add(stored(f, sample(f)))
	f.Add(stored(f, nor.New(0x1000)))
	f.Add([]byte("NORFLSH1"))
	f.Fuzz(func(t *testing.T, form []byte) {
		var fl nor.Flash
		n, err := fl.ReadFrom(bytes.NewReader(form))
		if err != nil {
			return
		}
		if n != int64(len(form)) {
			t.Fatalf("%d of %d bytes read", n, len(form))
		}
		if !bytes.Equal(stored(t, &fl), form) {
			t.Fatal("what parsed re-encodes differently")
		}
	})
}
