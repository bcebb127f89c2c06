package web

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/boombuler/barcode/code128"
)

// barcode is a Code 128 symbol as the path of an SVG image, one unit wide for each
// module and 40 high.
type barcode struct {
	Code, Text string
	Width      int
	Path       string
}

func newBarcode(code, text string) (barcode, error) {
	img, err := code128.Encode(code)
	if err != nil {
		return barcode{}, fmt.Errorf("%q as a barcode: %w", code, err)
	}
	const quiet = 10 // modules of silence on both sides, which the standard asks for
	var path strings.Builder
	w := img.Bounds().Dx()
	black := func(x int) bool {
		r, _, _, _ := img.At(x, 0).RGBA()
		return r == 0
	}
	for x := 0; x < w; x++ {
		n := 0
		for x+n < w && black(x+n) {
			n++
		}
		if n > 0 {
			fmt.Fprintf(&path, "M%d 0h%dv40h-%dz", quiet+x, n, n)
			x += n
		}
	}
	return barcode{Code: code, Text: text, Width: w + 2*quiet, Path: path.String()}, nil
}

// pageBarcodes is a sheet to print: commands and slots.
func (s *Server) pageBarcodes(q *request) error {
	v := s.feed.current().view
	var codes []barcode
	add := func(code, text string) {
		// A name that Code 128 cannot hold has no barcode.
		if b, err := newBarcode(code, text); err == nil {
			codes = append(codes, b)
		}
	}
	for _, c := range scanCodes {
		if strings.HasPrefix(c.Code, prefixCommand) {
			add(c.Code, q.lang.t(c.Key))
		}
	}
	for _, slot := range v.Slots {
		add(prefixSlot+slot.Name, q.lang.t("unit.slot")+" "+slot.Name)
	}
	return q.show(http.StatusOK, "page-barcodes", "title.barcodes", "help", map[string]any{"Codes": codes})
}
