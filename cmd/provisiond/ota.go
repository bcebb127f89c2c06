package main

type otaCmd struct {
	Package otaPackageCmd `cmd:"" help:"Make and open esp_encrypted_img files, the vendor's own encrypted updates."`
}
