//! Prints size, alignment and field offsets of every frozen type: the text of
//! `plugin-api/abi.lock`.

fn main() {
    println!("abi {}.{}", tenon_abi::ABI_MAJOR, tenon_abi::ABI_MINOR);
    for ty in tenon_abi::layout::TYPES {
        println!("{} size={} align={}", ty.name, ty.size, ty.align);
        for field in ty.fields {
            println!("{}.{} offset={}", ty.name, field.name, field.offset);
        }
    }
}
