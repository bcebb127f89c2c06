package recipe

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const args = `{
  "write_flash_args": ["--flash_mode", "dio"],
  "flash_settings": {"flash_mode": "dio", "flash_size": "4MB", "flash_freq": "80m"},
  "flash_files": {
    "0x0": "bootloader/bootloader.bin",
    "0x10000": "app.bin",
    "0x8000": "partition_table/partition-table.bin"
  },
  "bootloader": {"offset": "0x0", "file": "bootloader/bootloader.bin", "encrypted": "true"},
  "app": {"offset": "0x10000", "file": "app.bin", "encrypted": "true"},
  "partition-table": {"offset": "0x8000", "file": "partition_table/partition-table.bin"},
  "extra_esptool_args": {"after": "hard_reset", "stub": true, "chip": "esp32c3"}
}
`

func ptr(v uint32) *uint32 { return &v }

func TestParseFlasherArgs(t *testing.T) {
	unexported := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".line" }, cmp.Ignore())
	for _, tc := range []struct {
		name, text string
		want       FlasherArgs
	}{
		{"as ESP-IDF writes it", args, FlasherArgs{
			Chip: "esp32c3", FlashSize: "4MB", TableOffset: ptr(0x8000),
			Files: []FlasherFile{
				{Offset: 0, File: "bootloader/bootloader.bin", Name: "bootloader"},
				{Offset: 0x8000, File: "partition_table/partition-table.bin", Name: "partition-table"},
				{Offset: 0x10000, File: "app.bin", Name: "app"},
			},
		}},
		{"only what is needed", `{"flash_files": {"4096": "./x/../y.bin"}, "flash_settings": {"flash_size": "detect"}, "extra_esptool_args": {"chip": "esp32"}}`, FlasherArgs{}},
		{"entries that say something else", `{"flash_files": {"4096": "b.bin"}, "a": {"offset": "0x2000", "file": "b.bin"}, "c": {"offset": "0x1000", "file": "d.bin"}, "e": 3,
		  "f": {"offset": 7, "file": null}, "flash_settings": {"flash_size": "2MB"}, "extra_esptool_args": {"chip": "esp32"}}`, FlasherArgs{
			Chip: "esp32", FlashSize: "2MB", Files: []FlasherFile{{Offset: 0x1000, File: "b.bin", Name: "b.bin"}},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseFlasherArgs("f.json", []byte(tc.text))
			if tc.want.Chip == "" { // a path with .. stays refused, even where it leads back
				if err == nil || !strings.Contains(err.Error(), `f.json:1: flash_files."4096": "./x/../y.bin" is not a file inside the build directory`) {
					t.Fatal(got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tc.want, got, unexported); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestParseFlasherArgsBad(t *testing.T) {
	const rebuild = "; build the firmware again with idf.py build"
	const outside = " is not a file inside the build directory; list files outside the build directory in images: of the recipe"
	with := func(old, other string) string {
		if !strings.Contains(args, old) {
			t.Fatalf("%q is not in the example", old)
		}
		return strings.Replace(args, old, other, 1)
	}
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{"1: is not JSON: unexpected end of JSON input" + rebuild}},
		{"cut", args[:strings.Index(args, "  \"app\"")], []string{"10: is not JSON: unexpected end of JSON input" + rebuild}},
		{"trailing", args + "{}", []string{"14: is not JSON: invalid character '{' after top-level value" + rebuild}},
		{"array", "[]", []string{"1: is not a JSON object" + rebuild}},
		{"latin 1", "{\"\xe9\": 1}", []string{" is not UTF-8" + rebuild}},
		{"too long", args + strings.Repeat(" ", maxFile), []string{" is longer than 1048576 bytes" + rebuild}},
		{"nothing", "{}", []string{
			"1: extra_esptool_args: is missing" + rebuild, "1: flash_settings: is missing" + rebuild, "1: flash_files: is missing" + rebuild,
		}},
		{"chip missing", with(`, "chip": "esp32c3"`, ``), []string{"12: extra_esptool_args.chip: is missing" + rebuild}},
		{"chip a number", with(`"chip": "esp32c3"`, `"chip": 5`), []string{"12: extra_esptool_args.chip: is not a string" + rebuild}},
		{"chip empty", with(`"chip": "esp32c3"`, `"chip": ""`), []string{"12: extra_esptool_args.chip: is empty" + rebuild}},
		{"chip twice", with(`"chip": "esp32c3"`, `"chip": "esp32c3", "chip": "esp32"`), []string{`12: extra_esptool_args."chip": stands twice` + rebuild}},
		{"size missing", with(`"flash_size": "4MB", `, ``), []string{"3: flash_settings.flash_size: is missing" + rebuild}},
		{"settings a list", with(`{"flash_mode": "dio", "flash_size": "4MB", "flash_freq": "80m"}`, `[]`), []string{"3: flash_settings: is not an object" + rebuild}},
		{"a key twice", with(`"app": {`, `"bootloader": {`), []string{"10: bootloader: stands twice" + rebuild}},
		{"no files", `{"flash_files": {}, "flash_settings": {"flash_size": "2MB"}, "extra_esptool_args": {"chip": "esp32"}}`, []string{"1: flash_files: is empty" + rebuild}},
		{"offset twice", with(`"0x8000": `, `"0x10000": `), []string{`7: flash_files."0x10000": stands twice` + rebuild}},
		{"offset twice in two spellings", with(`"0x8000": `, `"65536": `), []string{`7: flash_files."65536": offset 0x10000 stands twice` + rebuild}},
		{"octal offset", with(`"0x8000": `, `"0123": `), []string{`7: flash_files."0123": the key is not a flash offset; offsets look like "0x10000"`}},
		{"large offset", with(`"0x8000": `, `"4294967296": `), []string{`7: flash_files."4294967296": the key is not a flash offset; offsets look like "0x10000"`}},
		{"table offset", with(`"offset": "0x8000"`, `"offset": 32768`), []string{`11: partition-table.offset: is not a flash offset` + rebuild}},
		{"parent", with(`"app.bin",`, `"../app.bin",`), []string{`6: flash_files."0x10000": "../app.bin"` + outside}},
		{"hidden parent", with(`"app.bin",`, `"a/../../app.bin",`), []string{`6: flash_files."0x10000": "a/../../app.bin"` + outside}},
		{"absolute", with(`"app.bin",`, `"/etc/passwd",`), []string{`6: flash_files."0x10000": "/etc/passwd"` + outside}},
		{"backslash", with(`"app.bin",`, `"..\\app.bin",`), []string{`6: flash_files."0x10000": "..\\app.bin"` + outside}},
		{"the directory", with(`"app.bin",`, `".",`), []string{`6: flash_files."0x10000": "."` + outside}},
		{"control character", with(`"app.bin",`, `"a\u001b[2J.bin",`), []string{`6: flash_files."0x10000": "a\x1b[2J.bin" holds a character that does not print` + rebuild}},
		{"file a number", with(`"app.bin",`, `7,`), []string{`6: flash_files."0x10000": is not a string` + rebuild}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, err := ParseFlasherArgs("f.json", []byte(tc.text))
			if err == nil {
				t.Fatalf("parsed as %+v", a)
			}
			var list Errors
			if !errors.As(err, &list) {
				t.Fatalf("%T is not Errors", err)
			}
			var got []string
			for _, e := range list {
				got = append(got, strings.TrimPrefix(e.Error(), "f.json:"))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// build makes a build directory and a recipe beside it.
func build(t *testing.T, flasherArgs string, change func(dir string)) *Recipe {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{
		"build/flasher_args.json":                       flasherArgs,
		"build/bootloader/bootloader.bin":               "boot",
		"build/app.bin":                                 "application",
		"build/partition_table/partition-table.bin":     "table",
		"secret.bin":                                    "outside",
		"product/r.yaml":                                strings.Replace(good, "../firmware/build", "../build", 1),
		"build/unlisted-and-therefore-never-opened.bin": "",
	} {
		write(t, filepath.Join(dir, name), data)
	}
	if change != nil {
		change(dir)
	}
	r, err := Load(filepath.Join(dir, "product/r.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoadImagesBuild(t *testing.T) {
	r := build(t, args, func(dir string) {
		// A link that stays inside the directory is as good as a file.
		if err := os.Rename(filepath.Join(dir, "build/app.bin"), filepath.Join(dir, "build/app-1.2.bin")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("app-1.2.bin", filepath.Join(dir, "build/app.bin")); err != nil {
			t.Fatal(err)
		}
	})
	got, err := r.LoadImages()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(filepath.Dir(r.File()), "../build")
	want := []File{
		{Offset: 0, Name: "bootloader", Path: filepath.Join(dir, "bootloader/bootloader.bin"), Data: []byte("boot")},
		{Offset: 0x8000, Name: "partition-table", Path: filepath.Join(dir, "partition_table/partition-table.bin"), Data: []byte("table")},
		{Offset: 0x10000, Name: "app", Path: filepath.Join(dir, "app.bin"), Data: []byte("application")},
	}
	for i := range want {
		want[i].SHA256 = sha256.Sum256(want[i].Data)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestLoadImagesList(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "out/a.bin"), "first")
	write(t, filepath.Join(dir, "b.bin"), "second")
	path := filepath.Join(dir, "product/r.yaml")
	write(t, path, set("build:-", "images: [{offset: 0x10000, file: ../out/a.bin}, {offset: 0, file: "+filepath.Join(dir, "b.bin")+", name: loader}]"))
	r, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.LoadImages()
	if err != nil {
		t.Fatal(err)
	}
	want := []File{
		{0, "loader", filepath.Join(dir, "b.bin"), []byte("second"), sha256.Sum256([]byte("second"))},
		{0x10000, "a.bin", filepath.Join(dir, "out/a.bin"), []byte("first"), sha256.Sum256([]byte("first"))},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestLoadImagesBad(t *testing.T) {
	const (
		buildFix = "; give an ESP-IDF build directory and run idf.py build in its project first"
		fileFix  = "; build the firmware again; files outside the build directory go into images: of the recipe"
	)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name, args string
		change     func(dir string)
		want       []string // with DIR for the directory
	}{
		{"no directory", args, func(dir string) { must(os.RemoveAll(filepath.Join(dir, "build"))) }, []string{
			"DIR/product/r.yaml:5: build: no such file or directory" + buildFix,
		}},
		{"directory is a file", args, func(dir string) {
			must(os.RemoveAll(filepath.Join(dir, "build")))
			write(t, filepath.Join(dir, "build"), "x")
		}, []string{"DIR/product/r.yaml:5: build: not a directory" + buildFix}},
		{"no flasher_args.json", args, func(dir string) { must(os.Remove(filepath.Join(dir, "build", FlasherArgsName))) }, []string{
			"DIR/product/r.yaml:5: build: DIR/build/flasher_args.json: no such file or directory" + buildFix,
		}},
		{"bad flasher_args.json", "{", nil, []string{
			"DIR/build/flasher_args.json:1: is not JSON: unexpected end of JSON input; build the firmware again with idf.py build",
		}},
		{"two files missing", args, func(dir string) {
			must(os.Remove(filepath.Join(dir, "build/app.bin")))
			must(os.RemoveAll(filepath.Join(dir, "build/bootloader")))
		}, []string{
			`DIR/build/flasher_args.json:5: flash_files."0x0": DIR/build/bootloader/bootloader.bin: no such file or directory` + fileFix,
			`DIR/build/flasher_args.json:6: flash_files."0x10000": DIR/build/app.bin: no such file or directory` + fileFix,
		}},
		{"empty file", args, func(dir string) { write(t, filepath.Join(dir, "build/app.bin"), "") }, []string{
			`DIR/build/flasher_args.json:6: flash_files."0x10000": DIR/build/app.bin: the file is empty` + fileFix,
		}},
		{"a directory", args, func(dir string) {
			must(os.Remove(filepath.Join(dir, "build/app.bin")))
			must(os.Mkdir(filepath.Join(dir, "build/app.bin"), 0o700))
		}, []string{`DIR/build/flasher_args.json:6: flash_files."0x10000": DIR/build/app.bin: is not a regular file` + fileFix}},
		{"a FIFO", args, func(dir string) {
			must(os.Remove(filepath.Join(dir, "build/app.bin")))
			must(syscall.Mkfifo(filepath.Join(dir, "build/app.bin"), 0o600))
		}, []string{`DIR/build/flasher_args.json:6: flash_files."0x10000": DIR/build/app.bin: is not a regular file` + fileFix}},
		{"a link out of the directory", args, func(dir string) {
			must(os.Remove(filepath.Join(dir, "build/app.bin")))
			must(os.Symlink("../secret.bin", filepath.Join(dir, "build/app.bin")))
		}, []string{`DIR/build/flasher_args.json:6: flash_files."0x10000": DIR/build/app.bin: path escapes from parent` + fileFix}},
		{"a linked directory", args, func(dir string) {
			must(os.RemoveAll(filepath.Join(dir, "build/bootloader")))
			write(t, filepath.Join(dir, "elsewhere/bootloader.bin"), "x")
			must(os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, "build/bootloader")))
		}, []string{`DIR/build/flasher_args.json:5: flash_files."0x0": DIR/build/bootloader/bootloader.bin: path escapes from parent` + fileFix}},
		{"too large", args, func(dir string) { must(os.Truncate(filepath.Join(dir, "build/app.bin"), maxImage)) }, []string{
			`DIR/build/flasher_args.json:6: flash_files."0x10000": DIR/build/app.bin: is too large: 134217719 bytes are left of what a recipe may load` + fileFix,
		}},
		{"another product", strings.NewReplacer("4MB", "8MB", `"esp32c3"`, `"esp32"`, `"0x8000"`, `"0x9000"`).Replace(args), nil, []string{
			`DIR/product/r.yaml:3: chip: DIR/build/flasher_args.json is a build for "esp32", the recipe is for esp32c3; build for the recipe's chip (idf.py set-target) or correct the recipe`,
			`DIR/product/r.yaml:6: flash_size: DIR/build/flasher_args.json is a build for "8MB", the recipe says 4MB; set CONFIG_ESPTOOLPY_FLASHSIZE in the project and build again, or correct the recipe`,
			`DIR/product/r.yaml: partition_table_offset: DIR/build/flasher_args.json has the table at 0x9000, the recipe at 0x8000; write partition_table_offset: 0x9000`,
		}},
		{"a chip that nobody knows", strings.Replace(args, `"esp32c3"`, `"esp99"`, 1), nil, []string{
			`DIR/product/r.yaml:3: chip: DIR/build/flasher_args.json is a build for "esp99", the recipe is for esp32c3; build for the recipe's chip (idf.py set-target) or correct the recipe`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := build(t, tc.args, tc.change)
			files, err := r.LoadImages()
			if err == nil {
				t.Fatalf("loaded %v", files)
			}
			dir := filepath.Dir(filepath.Dir(r.File()))
			want := strings.ReplaceAll(strings.Join(tc.want, "\n"), "DIR", dir)
			if diff := cmp.Diff(want, err.Error()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			var list Errors
			if !errors.As(err, &list) {
				t.Errorf("%T is not Errors", err)
			}
		})
	}
	t.Run("list", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "a.bin"), "first")
		path := filepath.Join(dir, "r.yaml")
		write(t, path, set("build:-", "images:")+"  - {offset: 0, file: a.bin}\n  - {offset: 0x1000, file: b.bin}\n")
		r, err := Load(path)
		must(err)
		_, err = r.LoadImages()
		want := path + ":10: images[1].file: " + dir + "/b.bin: no such file or directory; correct the path or build the firmware first"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
}

// detect and keep leave the size to the flashing tool, so they cannot disagree.
func TestLoadImagesDetect(t *testing.T) {
	for _, size := range []string{"detect", "keep"} {
		if _, err := build(t, strings.Replace(args, "4MB", size, 1), nil).LoadImages(); err != nil {
			t.Errorf("%s: %v", size, err)
		}
	}
}

func FuzzParseFlasherArgs(f *testing.F) {
	f.Add([]byte(args))
	f.Add([]byte(`{"flash_files": {"4096": "a"}, "a": {"offset": "0x1000", "file": "a"}, "flash_settings": {"flash_size": "detect"}, "extra_esptool_args": {"chip": "x"}}`))
	f.Add([]byte(`{"flash_files": {"0": "a/b", "1": "c"}, "b": {"offset": "1", "file": "c"}, "partition-table": {"offset": "0"}, "flash_settings": {"flash_size": "é"}, "extra_esptool_args": {"chip": "<"}}`))
	f.Add([]byte(`{"flash_files": {"0": "../a"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseFlasherArgs("f.json", b)
		if err != nil {
			var list Errors
			if !errors.As(err, &list) || len(list) == 0 {
				t.Fatalf("%T without errors", err)
			}
			return
		}
		for i, file := range a.Files {
			if !filepath.IsLocal(file.File) || file.File == "." {
				t.Fatalf("%q leaves the build directory", file.File)
			}
			if i > 0 && a.Files[i-1].Offset >= file.Offset {
				t.Fatal("offsets are not in order")
			}
		}
		once := a.Encode()
		again, err := ParseFlasherArgs("f.json", once)
		if err != nil {
			t.Fatalf("%v\nin its own encoding:\n%s", err, once)
		}
		if twice := again.Encode(); string(twice) != string(once) {
			t.Fatalf("second encoding differs:\n%s\n%s", once, twice)
		}
		for i := range a.Files {
			a.Files[i].line, again.Files[i].line = 0, 0
		}
		if diff := cmp.Diff(a, again, cmp.AllowUnexported(FlasherFile{})); diff != "" {
			t.Fatalf("changed on its way through Encode:\n%s", diff)
		}
	})
}
