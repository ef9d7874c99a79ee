//! (to come with the registrar)
use super::{Figures, Verdict, exchange::Exchange};
use crate::ffi::Error;
use crate::observe::Text;
use std::sync::Arc;
use std::time::Duration;
pub struct Bindings;
pub struct Held;
#[derive(Default, Clone)]
pub struct RegistrarOptions;
pub struct Found {
    pub contact: Vec<u8>,
    pub call_id: Vec<u8>,
    pub user_agent: Vec<u8>,
    pub received: Vec<u8>,
    pub path: Vec<u8>,
    pub q: u32,
    pub cseq: u32,
    pub expires_in: u32,
}
pub fn lookup(_: &Bindings, _: &str) -> Result<Vec<Found>, Error> {
    Ok(vec![])
}
pub fn open_registrar(_: RegistrarOptions, _: &str) -> Result<Arc<Bindings>, Error> {
    Ok(Arc::new(Bindings))
}
pub fn set_registrar_option(_: &mut RegistrarOptions, _: &str, _: &str) -> Result<(), Error> {
    Ok(())
}
pub fn add_figures(_: &Bindings, _: &mut Figures) {}
impl Bindings {
    pub fn metrics(&self, _: &mut Text) {}
    pub fn flush(&self, _: Duration) -> usize {
        0
    }
}
impl Exchange<'_> {
    pub fn register(&mut self, _: &Arc<Bindings>) -> Result<Verdict, Error> {
        Ok(Verdict::Done)
    }
    pub fn authorize(&mut self, _: &Arc<Bindings>) -> Result<Verdict, Error> {
        Ok(Verdict::Next)
    }
    pub fn authorize_and_register(&mut self, _: &Arc<Bindings>) -> Result<Verdict, Error> {
        Ok(Verdict::Done)
    }
}
