package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGeneratedFileIsCurrent(t *testing.T) {
	want, err := generate("..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../table_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("table_gen.go does not match the data files: run go generate ./efuse/table")
	}
}

// The comparison with ESP-IDF must notice each kind of difference. The rows here
// have the upstream form; the names are invented.
func TestCompareNotices(t *testing.T) {
	const ours = `chip,x
source,t.csv,rev,sum
block,0,BLOCK0,-,0x000,0x01c,7,-,-,-
block,1,BLOCK1,BLK1,0x038,0x098,8,7,0,key
field,WR_DIS,-,0,0+16,-,-,csv,-,w
field,RD_DIS,-,0,16+4,0,-,csv,-,r
field,SPEED,FAST,0,40+8 32+8,3,1,csv,0=a;1=b=c,speed
field,HIDDEN,-,0,50+1,-,-,reg,-,h
`
	const theirs = `
# comment
WR_DIS,        EFUSE_BLK0, 0, 16, [] mask, with a comma
WR_DIS.RD_DIS, EFUSE_BLK0, 0, 1, [] x
WR_DIS.SPEED,  EFUSE_BLK0, 3, 1, [WR_DIS.FAST] x
WR_DIS.BLK1,   EFUSE_BLK0, 7, 1, [] x
RD_DIS,        EFUSE_BLK0, 16, 4, [] x
RD_DIS.SPEED,  EFUSE_BLK0, 17, 1, [] x
RD_DIS.BLOCK1, EFUSE_BLK0, 16, 1, [] x
SPEED,         EFUSE_BLK0, 40, 8, [FAST] x {1: "quoted"}
,              EFUSE_BLK0, 32, 8, [FAST] x
`
	for name, edit := range map[string][2]string{
		"same":       {"", ""},
		"part order": {"SPEED,         EFUSE_BLK0, 40", "SPEED,         EFUSE_BLK0, 48"},
		"wr bit":     {"EFUSE_BLK0, 3, 1", "EFUSE_BLK0, 4, 1"},
		"rd bit":     {"EFUSE_BLK0, 17, 1", "EFUSE_BLK0, 18, 1"},
		"block wr":   {"EFUSE_BLK0, 7, 1", "EFUSE_BLK0, 8, 1"},
		"alias":      {"8, [FAST] x {", "8, [QUICK] x {"},
		"new field":  {",              EFUSE_BLK0, 32", "MORE, EFUSE_BLK0, 32"},
		"named now":  {"# comment", "HIDDEN, EFUSE_BLK0, 50, 1, [] x"},
		"no field":   {"WR_DIS.BLK1", "WR_DIS.BLK9"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := parse([]byte(ours))
			if err != nil {
				t.Fatal(err)
			}
			if err := f.check(); err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(theirs, edit[0], edit[1], 1)
			if name != "same" && text == theirs {
				t.Fatal("the edit changed nothing")
			}
			rows, err := parseIDF(text)
			if err != nil {
				t.Fatal(err)
			}
			if errs := f.against(rows); (len(errs) == 0) != (name == "same") {
				t.Errorf("differences: %v", errs)
			}
		})
	}
}

func TestCheckRefuses(t *testing.T) {
	const good = `chip,x
source,t.csv,rev,sum
block,0,BLOCK0,-,0x000,-,2,-,-,-
block,1,BLOCK1,-,0x038,-,8,7,0,key
purpose,4,XTS,-,32,reversed,must
field,WR_DIS,-,0,0+8,-,-,csv,-,w
field,RD_DIS,-,0,32+2,0,-,csv,-,r
field,A,B,0,40+2,3,1,csv,-,a
`
	for name, edit := range map[string][2]string{
		"outside the block": {"40+2", "63+2"},
		"two owners":        {"40+2", "33+2"},
		"alias taken":       {"A,B", "A,WR_DIS"},
		"no such block":     {"field,A,B,0", "field,A,B,2"},
		"WR_DIS bit":        {"40+2,3", "40+2,8"},
		"RD_DIS bit":        {"40+2,3,1", "40+2,3,2"},
		"block WR_DIS bit":  {"8,7,0", "8,9,0"},
		"block order":       {"block,1", "block,2"},
		"purpose form":      {"purpose,4,XTS,-", "purpose,4,XTS,BLOCK1"},
		"no masks":          {"field,RD_DIS", "field,RD"},
	} {
		t.Run(name, func(t *testing.T) {
			if f, err := parse([]byte(good)); err != nil || f.check() != nil {
				t.Fatal("the unedited file is refused", err)
			}
			text := strings.Replace(good, edit[0], edit[1], 1)
			if text == good {
				t.Fatal("the edit changed nothing")
			}
			f, err := parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if f.check() == nil {
				t.Error("accepted")
			}
		})
	}
}

// What is accepted is written again byte by byte.
func FuzzParse(f *testing.F) {
	names, _ := filepath.Glob("../data/*.csv")
	if len(names) == 0 {
		f.Fatal("no seeds")
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("chip,x\nsource,a,b,c\nblock,0,B,-,0x000,0x000,1,-,0 1,-\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := parse(data)
		if err != nil {
			return
		}
		if got := x.encode(); !bytes.Equal(got, data) {
			t.Errorf("%q is written as %q", data, got)
		}
		_ = x.check()
	})
}
