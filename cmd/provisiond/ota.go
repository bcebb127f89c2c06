package main

type otaCmd struct {
	Encrypt otaEncryptCmd `cmd:"" help:"Encrypt an application for one unit's slot, to be written raw, with a signed manifest."`
	Key     otaKeyCmd     `cmd:"" help:"Make a key that signs manifests."`
	Package otaPackageCmd `cmd:"" help:"Make and open esp_encrypted_img files, the vendor's own encrypted updates."`
}
