package efuse_test

// Hashes of the plan of stages() on the chips of the transcripts.
const (
	goldenESP32 = "20d54ea7a652c37d883cf1fd7e01bc5a795cfeeae025ebf6eea092611f9a9856"
	goldenC3    = "a74005a59d0e0ec8a2233cf037a94f7c86da580048cf5057f8128dadaee2ac0a"
)
